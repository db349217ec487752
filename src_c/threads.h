/* What the pool needs of the system, by the names of POSIX. Windows has the same under other names:
 * that part is compiled by the tests, and has not been run. */
#ifndef FASTRNN_THREADS_H
#define FASTRNN_THREADS_H
#if !defined(_WIN32)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <time.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#else
#undef _WIN32_WINNT
#define _WIN32_WINNT 0x0602 /* WaitOnAddress */
#define WIN32_LEAN_AND_MEAN
#include <windows.h>
#undef IN /* empty words in its declarations */
#undef OUT

typedef SRWLOCK pthread_mutex_t;
#define PTHREAD_MUTEX_INITIALIZER SRWLOCK_INIT
#define pthread_mutex_init(mutex, unused) InitializeSRWLock(mutex)
#define pthread_mutex_trylock(mutex) (!TryAcquireSRWLockExclusive(mutex))
#define pthread_mutex_unlock(mutex) ReleaseSRWLockExclusive(mutex)

/* A process has no fork and a thread no signals. */
typedef int sigset_t, pthread_once_t;
#define PTHREAD_ONCE_INIT 0
#define SIG_SETMASK 0
#define pthread_once(once, function) ((void)(*(once) ? 0 : (function(), *(once) = 1)))
#define pthread_atfork(before, parent, child) ((void)(child))
#define sigfillset(set) ((void)(*(set) = 0))
#define pthread_sigmask(how, set, old) ((void)(how), (void)(set), (void)(old))

typedef HANDLE pthread_t;
typedef struct {
  void *(*run)(void *);
  void *arg;
} fr_start;

static DWORD WINAPI fr_run_thread(void *memory) {
  const fr_start start = *(fr_start *)memory;
  HeapFree(GetProcessHeap(), 0, memory);
  start.run(start.arg);
  return 0;
}

static int fr_make_thread(HANDLE *thread, void *(*run)(void *), void *arg) {
  fr_start *start = HeapAlloc(GetProcessHeap(), 0, sizeof *start);
  if (!start) return 1;
  *start = (fr_start){run, arg};
  *thread = CreateThread(NULL, 0, fr_run_thread, start, 0, NULL);
  if (*thread) return 0;
  HeapFree(GetProcessHeap(), 0, start);
  return 1;
}
#define pthread_create(thread, attributes, run, arg) fr_make_thread(thread, run, arg)
#define pthread_detach(thread) CloseHandle(thread)
#endif
#endif
