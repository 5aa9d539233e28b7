/* A plugin of QEMU that counts instructions. Arguments: out=FILE, mark=NUMBER, repeatable, and
 * cache=KIB.
 *
 * Each time the emulated program makes a system call of one of these numbers, the count of the
 * instructions that it executed so far goes into the file, as a decimal line. With `cache` it is
 * followed by a space and the count of lines that a cache of this size exchanged with what is
 * behind it: those that were not in it, and those that it gave back because they were written to.
 * Threads share one count without a lock: meant for programs of one thread. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The part of QEMU's plugin interface that is used here. Its version 1 is that of QEMU up to 8.2,
 * 2 that of later ones; between them nothing of this part changed. */
typedef uint64_t plugin_id;
typedef struct qemu_plugin_tb block;
typedef struct qemu_plugin_insn instruction;
enum { READS_NO_REGISTERS = 0, READS = 1, WRITES = 2 };
size_t qemu_plugin_tb_n_insns(const block*);
void qemu_plugin_register_vcpu_tb_trans_cb(plugin_id, void (*)(plugin_id, block*));
void qemu_plugin_register_vcpu_tb_exec_cb(block*, void (*)(unsigned processor, void*), int, void*);
instruction* qemu_plugin_tb_get_insn(const block*, size_t);
void qemu_plugin_register_vcpu_mem_cb(instruction*,
                                      void (*)(unsigned processor, uint32_t access,
                                               uint64_t address, void*),
                                      int, int kinds, void*);
unsigned qemu_plugin_mem_size_shift(uint32_t access);
void qemu_plugin_register_vcpu_syscall_cb(plugin_id,
                                          void (*)(plugin_id, unsigned, int64_t number, uint64_t,
                                                   uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                                                   uint64_t, uint64_t));
#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = QEMU_API;

enum { MOST_MARKS = 4 };
static int64_t marks[MOST_MARKS];
static int mark_count;
static uint64_t executed;
static FILE* out;

static void execute(unsigned processor, void* instructions) {
  (void)processor;
  executed += (uintptr_t)instructions;
}

/* The cache: of each set the numbers of its lines, the last used one first, and twice that number
 * with a bit for lines that were written to. Zero is no line: it is at address zero. `recent` knows
 * lines that are in the cache for sure, as a first level would; they keep their place in the set. */
enum { LINE_SHIFT = 6, WAYS = 16, RECENT = 256 };
static uint64_t (*sets)[WAYS], set_count, exchanged, recent[RECENT];

static void touch(uint64_t line, uint64_t written) {
  uint64_t* known = &recent[line % RECENT];
  if (*known >> 1 == line && (*known & 1) >= written) return;
  uint64_t *set = sets[line % set_count], found = line << 1;
  int way = 0;
  while (way < WAYS - 1 && set[way] >> 1 != line) ++way;
  if (set[way] >> 1 == line) {
    found = set[way];
  } else {
    const uint64_t lost = set[way];
    uint64_t* other = &recent[(lost >> 1) % RECENT];
    exchanged += 1 + (lost & 1);
    if (*other == lost) *other = 0;
  }
  memmove(set + 1, set, (size_t)way * sizeof *set);
  *known = *set = found | written;
}

static void access_memory(unsigned processor, uint32_t access, uint64_t address, void* written) {
  (void)processor;
  const uint64_t last = address + (1u << qemu_plugin_mem_size_shift(access)) - 1;
  touch(address >> LINE_SHIFT, (uintptr_t)written);
  if (last >> LINE_SHIFT != address >> LINE_SHIFT)
    touch(last >> LINE_SHIFT, (uintptr_t)written);
}

/* A block is executed from its first instruction to its last. */
static void translate(plugin_id id, block* translated) {
  (void)id;
  const size_t count = qemu_plugin_tb_n_insns(translated);
  void* instructions = (void*)(uintptr_t)count;
  qemu_plugin_register_vcpu_tb_exec_cb(translated, execute, READS_NO_REGISTERS, instructions);
  for (size_t i = 0; sets && i < count; ++i) {
    instruction* at = qemu_plugin_tb_get_insn(translated, i);
    const int none = READS_NO_REGISTERS;
    qemu_plugin_register_vcpu_mem_cb(at, access_memory, none, READS, (void*)(uintptr_t)0);
    qemu_plugin_register_vcpu_mem_cb(at, access_memory, none, WRITES, (void*)(uintptr_t)1);
  }
}

static void call_system(plugin_id id, unsigned processor, int64_t number, uint64_t a, uint64_t b,
                        uint64_t c, uint64_t d, uint64_t e, uint64_t f, uint64_t g, uint64_t h) {
  (void)id, (void)processor, (void)a, (void)b, (void)c, (void)d, (void)e, (void)f, (void)g, (void)h;
  for (int i = 0; i < mark_count; ++i)
    if (marks[i] == number) {
      fprintf(out, "%" PRIu64, executed);
      if (sets) fprintf(out, " %" PRIu64, exchanged);
      fprintf(out, "\n");
    }
  fflush(out);
}

EXPORTED int qemu_plugin_install(plugin_id id, const void* info, int count, char** arguments) {
  (void)info;
  for (int i = 0; i < count; ++i) {
    if (!strncmp(arguments[i], "out=", 4)) out = fopen(arguments[i] + 4, "w");
    else if (!strncmp(arguments[i], "mark=", 5) && mark_count < MOST_MARKS)
      marks[mark_count++] = atoll(arguments[i] + 5);
    else if (!strncmp(arguments[i], "cache=", 6))
      set_count = (atoll(arguments[i] + 6) << 10) / WAYS >> LINE_SHIFT;
  }
  if (set_count) sets = calloc(set_count, sizeof *sets);
  if (!out || (set_count && !sets)) return 1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translate);
  qemu_plugin_register_vcpu_syscall_cb(id, call_system);
  return 0;
}
