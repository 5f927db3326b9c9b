/* Time limits, for poll(2). */

#include <time.h>

#include "agent.h"

int64_t now_milliseconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

int sooner(int one, int other)
{
	if (one < 0)
		return other;
	if (other < 0)
		return one;
	return one < other ? one : other;
}

int milliseconds_until(int64_t moment)
{
	int64_t left = moment - now_milliseconds();

	if (left <= 0)
		return 0;
	return left < INT_MAX ? (int)left + 1 : INT_MAX;
}
