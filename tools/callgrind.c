/* The requests that a program makes to valgrind's callgrind, as functions for ctypes. Without
 * valgrind they do nothing. */
#include <valgrind/callgrind.h>

void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void zero(void) { CALLGRIND_ZERO_STATS; }
void dump(const char *name) { CALLGRIND_DUMP_STATS_AT(name); }
int running(void) { return (int)RUNNING_ON_VALGRIND; }
