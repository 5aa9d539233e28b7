/* A pool of threads that share the tasks of a step.
 *
 * The thread that runs the model is one of them. A worker joins a step by taking a task, and the
 * step is over when every task is done: a worker that is descheduled, or asleep, without a task
 * holds nobody up. Those that wait spin for a moment, because the next step follows within
 * microseconds, and then sleep.
 *
 * Which step is shared and which of its tasks is next are one number, the ticket. A worker reads
 * the ticket, then the step, then takes a task by changing the ticket: that succeeds only while
 * the ticket is the one it read, and the step is not replaced before all its tasks are done. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

#define SPINS 4000 /* some tens of microseconds */

typedef struct {
  int32_t threads;
  pid_t process; /* whose threads they are: a child of fork has none of them */
  pthread_t* workers;
  _Atomic(const edgec_step_entry*) step;
  _Atomic(void* const*) buffers;
  _Alignas(64) _Atomic(uint64_t) ticket; /* number of the step << 32 | first task not taken */
  _Alignas(64) atomic_int done;          /* tasks of the step */
  atomic_int caller_sleeps;
  atomic_int sleepers; /* workers */
  atomic_int stop;
  pthread_mutex_t lock;
  pthread_cond_t wake, finished;
} edgec_pool;

/* Between steps, and before the first one. */
static const edgec_step_entry no_tasks;

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

static uint32_t step_of(uint64_t ticket) { return (uint32_t)(ticket >> 32); }

static void finish(edgec_pool* pool, int32_t count, int32_t tasks) {
  if (atomic_fetch_add(&pool->done, count) + count < tasks) return;
  if (!atomic_load(&pool->caller_sleeps)) return;
  pthread_mutex_lock(&pool->lock);
  pthread_cond_signal(&pool->finished);
  pthread_mutex_unlock(&pool->lock);
}

/* Take tasks of the step that is being shared until there are none; its number. */
static uint32_t work(edgec_pool* pool) {
  uint64_t ticket = atomic_load(&pool->ticket);
  for (;;) {
    const edgec_step_entry* step = atomic_load_explicit(&pool->step, memory_order_relaxed);
    void* const* buffers = atomic_load_explicit(&pool->buffers, memory_order_relaxed);
    const int32_t begin = (int32_t)(uint32_t)ticket, left = step->tasks - begin;
    if (left <= 0) return step_of(ticket);
    const int32_t count = step->grain < left ? step->grain : left;
    if (!atomic_compare_exchange_weak(&pool->ticket, &ticket, ticket + (uint32_t)count)) continue;
    const int32_t tasks = step->tasks;
    call_kernel(step, buffers, begin, begin + count);
    finish(pool, count, tasks);
    ticket = atomic_load(&pool->ticket);
  }
}

static void wait_for_step(edgec_pool* pool, uint32_t seen) {
  for (int spin = 0; spin < SPINS; ++spin) {
    if (step_of(atomic_load_explicit(&pool->ticket, memory_order_relaxed)) != seen) return;
    relax();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleepers, 1);
  while (step_of(atomic_load(&pool->ticket)) == seen) pthread_cond_wait(&pool->wake, &pool->lock);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->lock);
}

static void* worker(void* argument) {
  edgec_pool* pool = argument;
  for (uint32_t seen = 0;;) {
    wait_for_step(pool, seen);
    if (atomic_load(&pool->stop)) return NULL;
    seen = work(pool);
  }
}

/* Begin a step that `helpers` workers can help with. */
static void announce(edgec_pool* pool, int32_t helpers) {
  const uint64_t step = step_of(atomic_load_explicit(&pool->ticket, memory_order_relaxed)) + 1u;
  atomic_store(&pool->ticket, step << 32);
  if (!atomic_load(&pool->sleepers)) return;
  pthread_mutex_lock(&pool->lock);
  for (int32_t woken = 0; woken < helpers && woken < atomic_load(&pool->sleepers); ++woken)
    pthread_cond_signal(&pool->wake);
  pthread_mutex_unlock(&pool->lock);
}

static void wait_for_tasks(edgec_pool* pool, int32_t tasks) {
  for (int spin = 0; spin < SPINS; ++spin) {
    if (atomic_load(&pool->done) == tasks) return;
    relax();
  }
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->caller_sleeps, 1);
  while (atomic_load(&pool->done) != tasks) pthread_cond_wait(&pool->finished, &pool->lock);
  atomic_store(&pool->caller_sleeps, 0);
  pthread_mutex_unlock(&pool->lock);
}

static void pool_run(edgec_pool* pool, const edgec_step_entry* step, void* const* buffers) {
  if (pool->threads == 1 || step->tasks <= step->grain) {
    call_kernel(step, buffers, 0, step->tasks);
    return;
  }
  atomic_store_explicit(&pool->step, step, memory_order_relaxed);
  atomic_store_explicit(&pool->buffers, buffers, memory_order_relaxed);
  atomic_store_explicit(&pool->done, 0, memory_order_relaxed);
  announce(pool, (step->tasks - 1) / step->grain);
  work(pool);
  wait_for_tasks(pool, step->tasks);
}

/* Start the workers of this process; how many threads there are then. */
static int32_t start(edgec_pool* pool) {
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->wake, NULL);
  pthread_cond_init(&pool->finished, NULL);
  atomic_store(&pool->step, &no_tasks);
  atomic_store(&pool->ticket, 0);
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
  if (pool->process != getpid()) pool->threads = start(pool);
}

static void pool_close(edgec_pool* pool) {
  if (!pool) return;
  /* A child of fork has no threads to wait for, and nobody wakes those that its lock knows of. */
  if (pool->process == getpid()) {
    atomic_store(&pool->step, &no_tasks);
    atomic_store(&pool->stop, 1);
    announce(pool, pool->threads);
    for (int32_t i = 0; i + 1 < pool->threads; ++i) pthread_join(pool->workers[i], NULL);
    pthread_cond_destroy(&pool->finished);
    pthread_cond_destroy(&pool->wake);
    pthread_mutex_destroy(&pool->lock);
  }
  free(pool->workers);
  free(pool);
}

static edgec_pool* pool_open(int32_t threads) {
  if (threads <= 0) threads = usable_cores();
  edgec_pool* pool = NULL;
  if (posix_memalign((void**)&pool, 64, sizeof *pool)) return NULL;
  *pool = (edgec_pool){.threads = threads};
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
