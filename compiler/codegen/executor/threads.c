/* A pool of threads that share the tasks of steps.
 *
 * The thread that runs the model is one of them, and they are all alike: each takes a task, then
 * the next, and whoever finishes the last one of a step begins the step that follows. A thread that
 * the system does not run, or that sleeps, holds nobody up as long as it has no task. So a thread
 * offers its core to others between two tasks, before the system takes it away in the middle of
 * one. Threads without a task spin for a moment, because the next step follows within microseconds,
 * and then sleep.
 *
 * Which step is shared and which of its tasks is next are one number, the ticket. A task is taken
 * by changing the ticket, which succeeds only while it is the one that was read: so what was read
 * a long time ago does no harm, and as the ticket alone says which step it is of, neither does one
 * that has come round again. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/* How long a thread spins before it sleeps: some times what it takes to wake it. */
#define SPIN_NS 50000
/* How long a thread computes before it offers its core to others: less than the turn that Linux
 * gives while others wait (0.7 ms times 1 + log2 of the cores, from 6.6 on; more before). */
#define TURN_NS 1300000
/* The clock is read after so many tasks, of a microsecond or more each. */
#define TASKS_PER_LOOK 8
/* How often a thread that waits looks at the ticket between two looks at the clock. */
#define LOOKS 32

/* A ticket: number of the run, the step and its first task that was not taken. */
#define TASK_BITS 32
#define STEP_BITS EDGEC_STEP_BITS
#define PLACE(run, step) ((uint64_t)(run) << STEP_BITS | (uint64_t)(step))

typedef struct {
  edgec_session* session; /* whose steps they are */
  int32_t threads;
  atomic_int active; /* of them that take tasks; the others are parked */
  pid_t process; /* whose threads they are: a child of fork has none of them */
  pthread_t* workers;
  _Alignas(64) _Atomic(uint64_t) ticket;
  _Alignas(64) atomic_int done; /* tasks of the step */
  atomic_int sleepers;
  atomic_int caller_sleeps;
  atomic_int stop;
  pthread_mutex_t lock;
  pthread_cond_t wake;
  pthread_cond_t unpark;
  atomic_int started; /* gives workers their numbers */
} edgec_pool;

/* In executor.c: note that the step before is done, and make the next one ready; NULL if there is
 * none. Between two steps one thread calls it. */
static const edgec_step_entry* next_step(edgec_session* session);
static void run_tasks(edgec_session* session, const edgec_step_entry* step, int32_t begin,
                      int32_t end);

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

static uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* What of a ticket says which step of which run it is of. */
static uint64_t place_of(uint64_t ticket) { return ticket >> TASK_BITS; }

static int32_t step_at(uint64_t place) { return (int32_t)(place & ((1 << STEP_BITS) - 1)); }

/* Let others that wait for this core have it, if there are any and this thread had it for long;
 * the time. */
static uint64_t give_way(uint64_t* since) {
  const uint64_t now = now_ns();
  if (now - *since < TURN_NS) return now;
  sched_yield();
  return *since = now_ns();
}

static void wake(edgec_pool* pool, int32_t threads) {
  pthread_mutex_lock(&pool->lock);
  while (threads-- > 0) pthread_cond_signal(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

static int32_t least(int32_t left, int32_t right) { return left < right ? left : right; }

/* Run steps that are not worth sharing, until there is one that is, or none is left. */
static void advance(edgec_pool* pool, uint64_t run) {
  const edgec_step_entry* step;
  while ((step = next_step(pool->session)) && step->tasks <= step->grain)
    run_tasks(pool->session, step, 0, step->tasks);
  if (step) {
    atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
    atomic_store(&pool->ticket, PLACE(run, step - edgec_steps) << TASK_BITS);
    const int32_t sleepers = atomic_load(&pool->sleepers);
    if (sleepers) wake(pool, least(sleepers, (step->tasks - 1) / step->grain));
  } else {
    atomic_store(&pool->ticket, PLACE(run, edgec_step_count) << TASK_BITS);
    /* A signal could wake a worker in its place. */
    if (atomic_load(&pool->caller_sleeps)) wake(pool, pool->threads);
  }
}

/* Take tasks until there are none; the place where there are none. */
static uint64_t work(edgec_pool* pool, uint64_t* since) {
  uint64_t ticket = atomic_load(&pool->ticket);
  for (uint32_t taken = 0;;) {
    const uint64_t place = place_of(ticket);
    if (step_at(place) == edgec_step_count) return place;
    const edgec_step_entry* step = &edgec_steps[step_at(place)];
    const int32_t begin = (int32_t)(uint32_t)ticket, left = step->tasks - begin;
    if (left <= 0) return place;
    const int32_t count = least(step->grain, left);
    if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + (uint64_t)count)) continue;
    run_tasks(pool->session, step, begin, begin + count);
    if (atomic_fetch_add(&pool->done, count) + count == step->tasks)
      advance(pool, place >> STEP_BITS);
    if (++taken % TASKS_PER_LOOK == 0) give_way(since);
    ticket = atomic_load(&pool->ticket);
  }
}

static int same_place(edgec_pool* pool, uint64_t place) {
  return place_of(atomic_load(&pool->ticket)) == place;
}

/* Wait until there is another step, or none any more. */
static void wait_for_step(edgec_pool* pool, uint64_t place, uint64_t* since, int is_caller) {
  uint64_t began = 0, now = 0;
  do {
    for (int look = 0; look < LOOKS; ++look) {
      if (!same_place(pool, place)) return;
      relax();
    }
    now = give_way(since);
    if (!began) began = now;
  } while (now - began < SPIN_NS);
  pthread_mutex_lock(&pool->lock);
  if (is_caller) atomic_store(&pool->caller_sleeps, 1);
  atomic_fetch_add(&pool->sleepers, 1);
  while (same_place(pool, place)) pthread_cond_wait(&pool->wake, &pool->lock);
  atomic_fetch_sub(&pool->sleepers, 1);
  if (is_caller) atomic_store(&pool->caller_sleeps, 0);
  pthread_mutex_unlock(&pool->lock);
  *since = now_ns();
}

/* Sleep while this worker is not among those that compute. */
static void park(edgec_pool* pool, int32_t number, uint64_t* since) {
  if (number < atomic_load(&pool->active)) return;
  pthread_mutex_lock(&pool->lock);
  while (number >= atomic_load(&pool->active) && !atomic_load(&pool->stop))
    pthread_cond_wait(&pool->unpark, &pool->lock);
  pthread_mutex_unlock(&pool->lock);
  *since = now_ns();
}

static void* worker(void* argument) {
  edgec_pool* pool = argument;
  const int32_t number = 1 + atomic_fetch_add(&pool->started, 1);
  uint64_t since = now_ns(), place = PLACE(0, edgec_step_count);
  while (!atomic_load(&pool->stop)) {
    park(pool, number, &since);
    wait_for_step(pool, place, &since, 0);
    /* The calling thread alone does not use the ticket: there is nothing to take then. */
    place = number < atomic_load(&pool->active) ? work(pool, &since)
                                                : place_of(atomic_load(&pool->ticket));
  }
  return NULL;
}

/* Let so many of the threads compute from the next run on; how many there are then. Between two
 * runs only. */
static int32_t pool_use(edgec_pool* pool, int32_t threads) {
  threads = threads < 1 ? pool->threads : least(threads, pool->threads);
  if (threads == atomic_load(&pool->active)) return threads;
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->active, threads);
  pthread_cond_broadcast(&pool->unpark);
  pthread_mutex_unlock(&pool->lock);
  return threads;
}

/* Run all steps of the session once. */
static void pool_run(edgec_pool* pool) {
  if (atomic_load(&pool->active) == 1) {
    const edgec_step_entry* step;
    while ((step = next_step(pool->session))) run_tasks(pool->session, step, 0, step->tasks);
    return;
  }
  uint64_t since = now_ns();
  advance(pool, (place_of(atomic_load(&pool->ticket)) >> STEP_BITS) + 1);
  for (;;) {
    const uint64_t place = work(pool, &since);
    if (step_at(place) == edgec_step_count) return;
    wait_for_step(pool, place, &since, 1);
  }
}

/* Start the workers of this process; how many threads there are then. */
static int32_t start(edgec_pool* pool) {
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pthread_cond_init(&pool->unpark, NULL);
  atomic_store(&pool->started, 0);
  atomic_store(&pool->ticket, PLACE(0, edgec_step_count) << TASK_BITS);
  atomic_store(&pool->sleepers, 0);
  atomic_store(&pool->caller_sleeps, 0);
  pool->process = getpid();
  int32_t running = 1;
  while (running < pool->threads &&
         !pthread_create(&pool->workers[running - 1], NULL, worker, pool))
    ++running;
  return running;
}

/* In a child of fork, give the pool threads again, fewer if there are not enough to be had. What
 * the parent's lock was in the middle of does not matter: it begins anew. */
static void pool_own(edgec_pool* pool) {
  if (pool->process == getpid()) return;
  pool->threads = start(pool);
  atomic_store(&pool->active, least(atomic_load(&pool->active), pool->threads));
}

static void pool_close(edgec_pool* pool) {
  if (!pool) return;
  /* A child of fork has no threads to wait for, and nobody wakes those that its lock knows of. */
  if (pool->process == getpid()) {
    atomic_store(&pool->stop, 1);
    const uint64_t run = place_of(atomic_load(&pool->ticket)) >> STEP_BITS;
    atomic_store(&pool->ticket, PLACE(run + 1, edgec_step_count) << TASK_BITS);
    wake(pool, pool->threads);
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->unpark);
    pthread_mutex_unlock(&pool->lock);
    for (int32_t i = 0; i + 1 < pool->threads; ++i) pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->wake);
    pthread_cond_destroy(&pool->unpark);
    pthread_mutex_destroy(&pool->lock);
  }
  free(pool->workers);
  free(pool);
}

static edgec_pool* pool_open(edgec_session* session, int32_t threads) {
  if (threads <= 0) threads = usable_cores();
  edgec_pool* pool = NULL;
  if (posix_memalign((void**)&pool, 64, sizeof *pool)) return NULL;
  *pool = (edgec_pool){.session = session, .threads = threads};
  atomic_store(&pool->active, threads);
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  if (!pool->workers) {
    free(pool);
    return NULL;
  }
  const int32_t running = start(pool);
  if (running < threads) {
    pool->threads = running;
    pool_close(pool);
    return NULL;
  }
  return pool;
}

static int32_t pool_threads(const edgec_pool* pool) { return pool->threads; }
