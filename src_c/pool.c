/* The thread pool: one job at a time, spread over workers that wait awake for a moment and then sleep.
 *
 * Why not OpenMP: a bundled libgomp hangs after fork, two OpenMP runtimes in one process disturb
 * each other, and a step of a small batch needs a barrier cheaper than a parallel region.
 *
 * For calls on behalf of a library with threads of its own the job goes to a team of that library.
 *
 * fr_run takes the pool or, if somebody else has it, does the whole job alone: with size 1. Workers
 * are made when first needed and never end. After fork the child starts with an empty pool.
 *
 * Why there is no race:
 *  - Who holds `busy` is the owner. Only the owner writes what begins with job_, `workers` and the
 *    tickets, and it gives `busy` back only when `remaining` is 0.
 *  - A job is for the workers of rank 1 to size - 1. The owner counts the ticket of each of them up
 *    (release), and a worker reads the job's fields only after it has seen its own ticket change and
 *    its place become IN (acquire), and before it counts `remaining` down (release). So the fields do
 *    not change while a worker reads them. A worker without a new ticket reads nothing and is not
 *    waited for: a job of two costs the same however many workers there are.
 *  - Workers that are awake are IN at once. If one of them sleeps, all are ASKED first, each that wakes
 *    says that it has COME, and then the owner decides for all: IN, or OUT and it works alone. A place
 *    contains its ticket, so a worker that wakes after the decision finds another number and does
 *    nothing.
 *  - Sleeping: whoever sleeps first announces it in a flag and then lets sleep_while compare the
 *    word once more; whoever changes the word first changes it and then reads the flag. All four
 *    are sequentially consistent, so at least one of the two sees the other: no wake is lost. A wake
 *    too many does no harm, since every sleeper looks again.
 *
 * Other programs may take the CPU away from a worker for milliseconds, in the midst of its share. The
 * owner then waits: nobody else can compute half of an update in place again. What keeps such waits
 * rare:
 *  - Where a job waits after every step, one long wait ends the team (fr_wait_step): the workers
 *    leave, and the owner takes the other steps alone.
 *  - After some jobs in vain in short time the owner takes all jobs alone for a while, and for LONGER
 *    times as long whenever the next attempt is in vain, too.
 *  - A job has no more threads than CPUs on which its owner may run at this time. */
#define _GNU_SOURCE
#include "fastrnn.h"
#include "threads.h"
#include <limits.h>

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

/* Times in nanoseconds. A worker waits awake for PATIENT between the calls of a training loop (a small
 * model loses 9% of its time if the worker sleeps in them). Within a job a sleep costs more than most
 * waits, so one waits awake for as long as the job has taken so far, from PATIENT to LONGEST: its parts
 * are never quite equal. Then one sleeps. A sleeping worker has WAKE to come to a job.
 *
 * A job was in vain if its owner waited so long that it would have been done sooner alone, and longer
 * than BRIEF. Once may be chance. After two such jobs within AGAIN all are HASTY for HASTE: they sleep at
 * once, since whoever waits awake may be what keeps the other off its CPU. If a job is in vain even so,
 * the owner is ALONE for this long, later for up to LONG_ALONE, and then tries again as at first.
 * GIVE_UP: how long the owner waits at the least before it ends a team. LOOK: how often it asks on which
 * CPUs it may run. */
enum { PATIENT = 100000, LONGEST = 1000000, HASTY = 5000, WAKE = 500000, BRIEF = 50000 };
enum { GIVE_UP = 200000, LOOK = 10000000, AGAIN = 20000000, HASTE = 15000000 };
enum { ALONE = 5000000, LONGER = 4, LONG_ALONE = 640000000 };
enum { REFUSED = 100000000 }; /* how long no thread is asked for after the system refused one */

typedef struct {
  int ticket;              /* counts the jobs that this worker is asked to join */
  int place;               /* 4 * ticket + one of the next line */
  int asleep;
  int seen;                /* the ticket before its first job */
  int id, cpu;             /* the system's number of the thread, and the CPU that it was on last */
  char padding[64 - 6 * sizeof(int)];
} worker_state;
enum { ASKED, COME, IN, OUT };

static pthread_mutex_t busy = PTHREAD_MUTEX_INITIALIZER; /* held by the owner of the pool */
static worker_state states[FR_MAX_THREADS] __attribute__((aligned(64))); /* [rank - 1] */
static int workers;
static int remaining;      /* workers that have not finished the job */
static int owner_asleep;
static fr_work job_work;
static void *job_arg;
static int job_size;
static int64_t job_start;
static int64_t job_waited; /* how long the owner has waited in it */
/* written by owners */
static int64_t last_vain;   /* when a job was in vain */
static int64_t hasty_until;
static int64_t alone_for;   /* how long owners were alone the last time, 0: not lately */
static int64_t alone_until; /* 0: not alone */
static int64_t last_look;
static int64_t hire_again;  /* when to ask for a thread again after the system refused one */
static int refused;         /* how many threads the system has refused */
static int cpus = FR_MAX_THREADS;
static int any_number;      /* more threads than CPUs may be used */
static __thread int is_worker;
/* of another library, whose threads take the place of the workers; NULL: there is none */
static fr_team team_parallel;
static fr_number team_rank, team_size;

/* ---- waiting for an int to change ----------------------------------------------------------- */

static int is_any_number(void) { return __atomic_load_n(&any_number, __ATOMIC_RELAXED); }
static int load(const int *word) { return __atomic_load_n(word, __ATOMIC_ACQUIRE); }

#if defined(_WIN32)
static int64_t now(void) {
  LARGE_INTEGER ticks, second;
  QueryPerformanceCounter(&ticks);
  QueryPerformanceFrequency(&second);
  return ticks.QuadPart / second.QuadPart * 1000000000 +
         ticks.QuadPart % second.QuadPart * 1000000000 / second.QuadPart;
}
#else
static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}
#endif

/* Waits until *word is not `value`, but not longer than about `patience`; returns whether it is. A
 * pause takes 10 to 150 cycles, depending on the CPU: only the clock knows how long it was. */
static int spin_while(const int *word, int value, int64_t patience) {
  int64_t start = 0;
  for (;;) {
    for (int i = 0; i < 32; i++) {
      if (load(word) != value) return 1;
      relax();
    }
    const int64_t time = now();
    if (!start) start = time;
    if (time - start >= patience) return 0;
  }
}

#if defined(__linux__)
/* Sleeps until somebody wakes `word`, unless it is not `value` any more, at most for `time` unless it is
 * 0. May return early. */
static void sleep_while(const int *word, int value, int64_t time) {
  const struct timespec t = {(time_t)(time / 1000000000), (long)(time % 1000000000)};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, time ? &t : NULL, NULL, 0);
}

static void wake(const int *word) {
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}

static void forget_sleepers(void) {}
#elif defined(_WIN32)
static void sleep_while(const int *word, int value, int64_t time) {
  WaitOnAddress((volatile void *)word, &value, sizeof value,
                time ? (DWORD)((time + 999999) / 1000000) : INFINITE);
}

static void wake(const int *word) { WakeByAddressAll((void *)word); }

static void forget_sleepers(void) {}
#else
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;

static void sleep_while(const int *word, int value, int64_t time) {
  struct timespec until;
  clock_gettime(CLOCK_REALTIME, &until); /* the clock of pthread_cond_timedwait */
  const int64_t end = until.tv_nsec + time;
  until.tv_sec += (time_t)(end / 1000000000);
  until.tv_nsec = (long)(end % 1000000000);
  pthread_mutex_lock(&lock);
  while (__atomic_load_n(word, __ATOMIC_SEQ_CST) == value)
    if (time ? pthread_cond_timedwait(&woken, &lock, &until) : pthread_cond_wait(&woken, &lock)) break;
  pthread_mutex_unlock(&lock);
}

static void wake(const int *word) {
  (void)word; /* every sleeper checks its own word */
  pthread_mutex_lock(&lock);
  pthread_cond_broadcast(&woken);
  pthread_mutex_unlock(&lock);
}

static void forget_sleepers(void) {
  pthread_mutex_init(&lock, NULL);
  pthread_cond_init(&woken, NULL);
}
#endif

/* Sleeps until *word is not `value`, at most for `time` unless it is 0; returns whether it is. `sleepers`
 * counts who sleeps. */
static int doze_while(int *word, int value, int *sleepers, int64_t time) {
  const int64_t start = time ? now() : 0;
  int left;
  __atomic_add_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
  while ((left = __atomic_load_n(word, __ATOMIC_SEQ_CST) == value)) {
    const int64_t spent = time ? now() - start : 0;
    if (time && spent >= time) break;
    sleep_while(word, value, time ? time - spent : 0);
  }
  __atomic_sub_fetch(sleepers, 1, __ATOMIC_SEQ_CST);
  return !left;
}

static void wait_while(int *word, int value, int *sleepers, int64_t patience) {
  if (!spin_while(word, value, patience)) doze_while(word, value, sleepers, 0);
}

/* How long the owner may wait in a job of so many nanoseconds before it is in vain: alone it takes
 * job_size times what is not waited. */
static int64_t worth(int64_t spent, int64_t least) {
  const int64_t most = spent / job_size * (job_size - 1);
  return most > least ? most : least;
}

/* At the end of a job, or of the wait for sleeping workers; returns whether it was in vain. */
static int look_back(void) {
  if (job_waited < BRIEF || is_any_number()) return 0; /* tests want their threads */
  const int64_t time = now();
  if (job_waited <= worth(time - job_start, BRIEF)) return 0;
  if (time - last_vain >= AGAIN + alone_for) {
    alone_for = 0;
  } else if (time >= hasty_until && !alone_for) {
    hasty_until = time + HASTE;
  } else {
    alone_for = alone_for ? LONGER * alone_for : ALONE;
    if (alone_for > LONG_ALONE) alone_for = LONG_ALONE;
    alone_until = time + alone_for;
    hasty_until = 0;
  }
  last_vain = time;
  return 1;
}

/* Waits within a job. With `slow` the job waits after every step: it becomes 1 as soon as the owner sees
 * that the job is in vain. */
static void wait_for_others(int *word, int value, int *sleepers, int *slow) {
  if (spin_while(word, value, HASTY)) return; /* nearly always */
  const int64_t start = now(), spent = start - job_start;
  int64_t patience = spent < PATIENT ? PATIENT : spent < LONGEST ? spent : LONGEST;
  if (start < hasty_until) patience = 0;
  if (!patience || !spin_while(word, value, patience)) {
    if (slow && !is_worker) { /* an owner that is late would be late alone, too */
      const int64_t left = worth(spent, GIVE_UP) - job_waited - (now() - start);
      if (left <= 0 || !doze_while(word, value, sleepers, left))
        __atomic_store_n(slow, 1, __ATOMIC_RELAXED);
    }
    doze_while(word, value, sleepers, 0);
  }
  if (!is_worker) job_waited += now() - start;
}

static void wake_if_any(const int *word, const int *sleepers) {
  if (__atomic_load_n(sleepers, __ATOMIC_SEQ_CST)) wake(word);
}

/* ---- the pool ------------------------------------------------------------------------------- */

static int place_of(int ticket, int kind) { return (int)(4u * (unsigned)ticket + (unsigned)kind); }

/* Sets a worker's place in a job; it may wait for that. */
static void set_place(worker_state *w, int kind) {
  __atomic_store_n(&w->place, place_of(w->ticket, kind), __ATOMIC_SEQ_CST);
  wake_if_any(&w->place, &w->asleep);
}

/* Asks a worker to a job, which it is IN or only ASKED to. */
static void call(worker_state *w, int kind) {
  __atomic_store_n(&w->place, place_of(w->ticket + 1, kind), __ATOMIC_RELAXED);
  __atomic_add_fetch(&w->ticket, 1, __ATOMIC_SEQ_CST); /* publishes the place */
  wake_if_any(&w->ticket, &w->asleep);
}

/* Whether this worker is in the job of a ticket. */
static int join(worker_state *me, int ticket) {
  int place = place_of(ticket, ASKED);
  const int come = place_of(ticket, COME);
  if (__atomic_compare_exchange_n(&me->place, &place, come, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE)) {
    wake_if_any(&me->place, &owner_asleep);
    wait_while(&me->place, come, &me->asleep, PATIENT);
    place = load(&me->place);
  }
  return place == place_of(ticket, IN);
}

#if defined(__linux__)
static void note_place(worker_state *me) {
  if (!__atomic_load_n(&me->id, __ATOMIC_RELAXED))
    __atomic_store_n(&me->id, (int)syscall(SYS_gettid), __ATOMIC_RELAXED);
  __atomic_store_n(&me->cpu, sched_getcpu(), __ATOMIC_RELAXED);
}

/* The system likes to wake a thread where it was, even if the owner runs there now and another CPU is
 * idle; they then take turns of milliseconds. Keeps a worker away from the owner's CPU, if that is where
 * it was; returns whether it did. */
static int keep_away(const worker_state *w) {
  cpu_set_t set;
  const int own = sched_getcpu();
  const int id = __atomic_load_n(&w->id, __ATOMIC_RELAXED);
  if (!id || own < 0 || __atomic_load_n(&w->cpu, __ATOMIC_RELAXED) != own) return 0;
  if (sched_getaffinity(id, sizeof set, &set) || CPU_COUNT(&set) < 2) return 0;
  CPU_CLR(own, &set);
  return !sched_setaffinity(id, sizeof set, &set);
}

/* Lets a worker run wherever the owner may. */
static void let_go(const worker_state *w) {
  cpu_set_t set;
  const int id = __atomic_load_n(&w->id, __ATOMIC_RELAXED);
  if (!sched_getaffinity(0, sizeof set, &set)) sched_setaffinity(id, sizeof set, &set);
}
#else
static void note_place(worker_state *me) { (void)me; }
static int keep_away(const worker_state *w) { return (void)w, 0; }
static void let_go(const worker_state *w) { (void)w; }
#endif

/* Asks sleeping workers to come, and waits for them; returns whether all of them are in the job. */
static int gather(int threads) {
  int apart[FR_MAX_THREADS];
  for (int i = 0; i < threads - 1; i++) {
    apart[i] = keep_away(&states[i]);
    call(&states[i], ASKED);
  }
  int all = 1;
  for (int i = 0; i < threads - 1 && all; i++) {
    const int asked = place_of(states[i].ticket, ASKED);
    if (spin_while(&states[i].place, asked, HASTY)) continue;
    const int64_t left = job_start + WAKE - now();
    all = left > 0 && doze_while(&states[i].place, asked, &owner_asleep, left);
  }
  if (all) { /* a wake costs what it costs: it does not count */
    job_start = now();
  } else {
    job_waited = now() - job_start;
    look_back();
  }
  for (int i = 0; i < threads - 1; i++) {
    set_place(&states[i], all ? IN : OUT);
    if (apart[i]) let_go(&states[i]);
  }
  return all;
}

static int somebody_sleeps(int threads) {
  for (int i = 0; i < threads - 1; i++)
    if (load(&states[i].asleep)) return 1;
  return 0;
}

static void *worker(void *arg) {
  worker_state *me = arg;
  const int rank = (int)(me - states) + 1;
  int seen = me->seen;
  is_worker = 1;
  for (;;) {
    wait_while(&me->ticket, seen, &me->asleep, PATIENT);
    seen = load(&me->ticket);
    note_place(me);
    if (!join(me, seen)) continue;
    job_work(job_arg, rank, job_size);
    if (__atomic_sub_fetch(&remaining, 1, __ATOMIC_SEQ_CST) == 0)
      wake_if_any(&remaining, &owner_asleep);
  }
  return NULL;
}

static void after_fork_in_child(void) {
  pthread_mutex_init(&busy, NULL);
  forget_sleepers();
  workers = owner_asleep = 0;
  hire_again = 0;
  team_parallel = NULL; /* GNU OpenMP would wait for threads that the child does not have */
}

static void watch(void) { pthread_atfork(NULL, NULL, after_fork_in_child); }

static void watch_forks(void) {
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  pthread_once(&once, watch);
}

/* Makes workers until there are n; fewer if the system has no more threads to give. Signals are for
 * the threads of the program: workers block them all. */
static void hire(int n) {
  if (workers >= n || (refused && job_start < hire_again)) return;
  watch_forks();
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (workers < n) {
    pthread_t thread;
    worker_state *state = &states[workers];
    state->seen = state->ticket;
    state->place = place_of(state->ticket, OUT);
    state->asleep = state->id = 0;
    if (pthread_create(&thread, NULL, worker, state)) {
      __atomic_store_n(&refused, refused + 1, __ATOMIC_RELAXED);
      hire_again = job_start + REFUSED;
      break;
    }
    pthread_detach(thread);
    __atomic_store_n(&workers, workers + 1, __ATOMIC_RELAXED);
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* Asks now and then on how many CPUs the caller may run; returns how many threads a job may have. */
static int most_threads(int64_t time) {
#if defined(__linux__)
  if (time - last_look >= LOOK) {
    cpu_set_t set;
    last_look = time;
    if (!sched_getaffinity(0, sizeof set, &set)) cpus = CPU_COUNT(&set);
  }
#else
  (void)time, (void)last_look;
#endif
  return is_any_number() ? FR_MAX_THREADS : cpus;
}

void fr_any_number(int on) { __atomic_store_n(&any_number, on, __ATOMIC_RELAXED); }

/* A share of the job on a thread of another library's team. */
static void team_share(void *unused) {
  (void)unused;
  const int rank = team_rank(), size = team_size();
  if (rank == 0) job_size = size; /* the team may be smaller than was asked for */
  is_worker = rank != 0;
  job_work(job_arg, rank, size);
  is_worker = 0;
}

void fr_set_team(fr_team parallel, fr_number rank, fr_number size) {
  watch_forks();
  team_parallel = parallel;
  team_rank = rank;
  team_size = size;
}

/* Whoever has a team of threads that are awake anyway, such as OpenMP's between two operators of
 * PyTorch, does not want a second one beside it: the two would take the CPUs away from each other. */
static void run_on_team(fr_work work, void *arg, int threads) {
  job_work = work;
  job_arg = arg;
  job_size = threads;
  job_waited = 0;
  team_parallel(team_share, NULL, (unsigned)threads, 0);
  look_back();
}

void fr_run(fr_work work, void *arg, int threads, int on_team) {
  if (threads > FR_MAX_THREADS) threads = FR_MAX_THREADS;
  if (threads <= 1 || pthread_mutex_trylock(&busy)) {
    work(arg, 0, 1);
    return;
  }
  job_start = now();
  const int most = job_start < alone_until ? 1 : most_threads(job_start);
  if (threads > most) threads = most;
  if (threads > 1 && on_team && team_parallel) {
    run_on_team(work, arg, threads);
    pthread_mutex_unlock(&busy);
    return;
  }
  if (threads > 1) hire(threads - 1);
  if (threads > workers + 1) threads = workers + 1;
  job_work = work;
  job_arg = arg;
  job_size = threads;
  job_waited = 0;
  __atomic_store_n(&remaining, threads - 1, __ATOMIC_RELAXED); /* published by the places */
  if (threads > 1 && somebody_sleeps(threads)) {
    if (!gather(threads)) threads = 1;
  } else {
    for (int i = 0; i < threads - 1; i++) call(&states[i], IN);
  }
  if (threads == 1) {
    pthread_mutex_unlock(&busy);
    work(arg, 0, 1);
    return;
  }
  work(arg, 0, threads);
  for (int left; (left = load(&remaining)) > 0;)
    wait_for_others(&remaining, left, &owner_asleep, NULL);
  if (look_back())
    for (int i = 0; i < threads - 1; i++)
      if (keep_away(&states[i])) let_go(&states[i]);
  pthread_mutex_unlock(&busy);
}

int fr_workers(void) { return __atomic_load_n(&workers, __ATOMIC_RELAXED); }
int fr_refused(void) { return __atomic_load_n(&refused, __ATOMIC_RELAXED); }

/* A barrier: the last to come opens the next phase. */
static void meet(fr_barrier *b, int size, int *slow) {
  const int phase = __atomic_load_n(&b->phase, __ATOMIC_RELAXED);
  if (__atomic_add_fetch(&b->count, 1, __ATOMIC_ACQ_REL) < size) {
    wait_for_others(&b->phase, phase, &b->sleepers, slow);
    return;
  }
  __atomic_store_n(&b->count, 0, __ATOMIC_RELAXED);
  b->apart = __atomic_load_n(&b->slow, __ATOMIC_RELAXED); /* published by the phase */
  __atomic_store_n(&b->phase, phase + 1, __ATOMIC_SEQ_CST);
  wake_if_any(&b->phase, &b->sleepers);
}

void fr_wait(fr_barrier *b, int size) {
  if (size > 1) meet(b, size, NULL);
}

int fr_wait_step(fr_barrier *b, int size) {
  if (size <= 1) return 1;
  meet(b, size, &b->slow);
  return !b->apart;
}
