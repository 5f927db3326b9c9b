/* Sends without end, by UDP or to the host's vsock: a neighbour that floods (see neighbours.py). */
#include <arpa/inet.h>
#include <linux/vm_sockets.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(int count, char **words)
{
	static char data[1400];

	if (count == 3 && strcmp(words[1], "udp") == 0) {
		struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9)};
		int fd = socket(AF_INET, SOCK_DGRAM, 0);

		inet_pton(AF_INET, words[2], &to.sin_addr);
		for (;;)
			sendto(fd, data, sizeof data, 0, (struct sockaddr *)&to, sizeof to);
	}
	if (count == 3 && strcmp(words[1], "vsock") == 0) {
		struct sockaddr_vm to = {
			.svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = atoi(words[2])};
		int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

		if (connect(fd, (struct sockaddr *)&to, sizeof to) < 0)
			return 1;
		while (write(fd, data, sizeof data) > 0)
			;
	}
	return 2;
}
