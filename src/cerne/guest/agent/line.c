/* Files of which the first line is all. */

#include <stdio.h>
#include <string.h>

#include "agent.h"

bool read_line(const char *path, char *text, size_t size)
{
	FILE *file = fopen(path, "re");

	if (!file || !fgets(text, (int)size, file))
		*text = 0;
	if (file)
		fclose(file);
	text[strcspn(text, "\n")] = 0;
	return *text != 0;
}
