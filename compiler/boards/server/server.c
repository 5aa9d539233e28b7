/* The program on a board that edgec talks to: TVM's RPC protocol, with files that stay.
 *
 *     edgec-server HOST PORT STORE --secret FILE [--key KEY] [--tracker HOST:PORT]
 *     edgec-server HOST PORT STORE --key KEY --proxy HOST:PORT
 *
 * It serves one session at a time, each in a process of its own: a model that crashes takes its
 * session with it and not the server. Files that a session sends are in STORE/session and go when
 * it ends; what it keeps is in STORE/kept, under its digest. Port 0 takes a free one; the line
 * "listening on PORT" says which. Whoever is served can run any code, as far as the user of this
 * program can: so a client first shows that it knows the secret (compiler/boards/secret.py tells
 * how), and HOST is to be loopback, as what follows is not encrypted. Through a proxy the key is all
 * that a client has to know. Sessions write nowhere but below STORE, where Linux has Landlock. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <gnu/libc-version.h>
#include <linux/capability.h>
#include <linux/landlock.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>
#include <tvm/ffi/c_api.h>
#include <unistd.h>

#include "sha256.h"

enum { MAGIC = 0xff271, MISMATCH = MAGIC + 2, TRACKER_MAGIC = 0x2f271 };
enum { KEPT_FILES = 8, PATH_BYTES = 1024, KEY_BYTES = 256, HANDSHAKE_SECONDS = 10 };
/* How often the tracker is asked whether somebody took our key and never came. */
enum { HELLO_BYTES = 8, NUMBER_BYTES = 32, CODE_BYTES = 32, AUTHENTICATE_MILLISECONDS = 5000 };
/* A session that lasts longer is ended, whatever its client asked for. */
enum { SESSION_SECONDS = 24 * 3600 };
enum { PING_MILLISECONDS = 2000, PINGS_UNTIL_NEW_KEY = 4, RETRY_SECONDS = 1 };

static char session_folder[PATH_BYTES], kept_folder[PATH_BYTES];

/* ---- Functions that a client calls ---- */

static int fail(const char* format, ...) {
  char message[2 * PATH_BYTES];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  TVMFFIErrorSetRaisedFromCStr("RuntimeError", message);
  return -1;
}

/* Text or bytes, however they were passed; data is NULL if they are neither. */
static TVMFFIByteArray text_of(const TVMFFIAny* value) {
  TVMFFIByteArray text = {NULL, 0};
  switch (value->type_index) {
    case kTVMFFIRawStr: text = (TVMFFIByteArray){value->v_c_str, strlen(value->v_c_str)}; break;
    case kTVMFFISmallStr:
    case kTVMFFISmallBytes: text = (TVMFFIByteArray){value->v_bytes, value->small_str_len}; break;
    case kTVMFFIByteArrayPtr: text = *(const TVMFFIByteArray*)value->v_ptr; break;
    case kTVMFFIStr:
    case kTVMFFIBytes: text = *(const TVMFFIByteArray*)(value->v_obj + 1); break;
    default: break;
  }
  return text;
}

/* FOLDER/NAME, for a name that stays in the folder. */
static int path_in(const char* folder, const TVMFFIAny* name, char* path) {
  TVMFFIByteArray text = text_of(name);
  if (!text.data || !text.size || text.size > 200 || text.data[0] == '.' ||
      memchr(text.data, '/', text.size) || memchr(text.data, 0, text.size))
    return fail("bad file name");
  snprintf(path, 2 * PATH_BYTES, "%s/%.*s", folder, (int)text.size, text.data);
  return 0;
}

static int give_text(TVMFFIAny* result, const char* text) {
  TVMFFIByteArray bytes = {text, strlen(text)};
  return TVMFFIStringFromByteArray(&bytes, result);
}

static int give_integer(TVMFFIAny* result, int64_t value) {
  *result = (TVMFFIAny){.type_index = kTVMFFIInt, .v_int64 = value};
  return 0;
}

static int check_count(int32_t found, int32_t expected) {
  return found == expected ? 0 : fail("%d arguments, expected %d", found, expected);
}

/* Bytes of memory that programs can still have. */
static unsigned long long available_memory(void) {
  unsigned long long kib = 0;
  char line[256];
  FILE* file = fopen("/proc/meminfo", "r");
  while (file && fgets(line, sizeof line, file))
    if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) break;
  if (file) fclose(file);
  return kib * 1024;
}

/* The first "flags" line of /proc/cpuinfo: x86 tells its features there only. */
static void read_flags(char* flags, size_t bytes) {
  static char line[8192];
  FILE* file = fopen("/proc/cpuinfo", "r");
  flags[0] = 0;
  while (file && fgets(line, sizeof line, file))
    if (!strncmp(line, "flags", 5) && strchr(line, ':')) {
      snprintf(flags, bytes, "%s", strchr(line, ':') + 1);
      flags[strcspn(flags, "\n")] = 0;
      break;
    }
  if (file) fclose(file);
}

/* () -> what this machine is, as JSON */
static int facts(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)self, (void)arguments;
  if (check_count(count, 0)) return -1;
  static char flags[8192], text[9216];
  struct utsname name;
  struct statvfs disk;
  if (uname(&name)) return fail("uname: %s", strerror(errno));
  if (statvfs(kept_folder, &disk)) return fail("%s: %s", kept_folder, strerror(errno));
  read_flags(flags, sizeof flags);
  snprintf(text, sizeof text,
           "{\"architecture\": \"%s\", \"glibc\": \"%s\", \"hwcap\": %llu, \"hwcap2\": %llu, "
           "\"flags\": \"%s\", \"cores\": %ld, \"memory_bytes\": %llu, \"disk_bytes\": %llu}",
           name.machine, gnu_get_libc_version(), (unsigned long long)getauxval(AT_HWCAP),
           (unsigned long long)getauxval(AT_HWCAP2), flags, sysconf(_SC_NPROCESSORS_ONLN),
           available_memory(), (unsigned long long)disk.f_bavail * disk.f_frsize);
  return give_text(result, text);
}

/* (name) -> size of a kept file in bytes, -1 if there is none */
static int kept(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[2 * PATH_BYTES];
  struct stat status;
  if (check_count(count, 1) || path_in(kept_folder, &arguments[0], path)) return -1;
  return give_integer(result, stat(path, &status) ? -1 : (int64_t)status.st_size);
}

/* (name, bytes) -> size of the session's file after they were appended */
static int append(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[2 * PATH_BYTES];
  if (check_count(count, 2) || path_in(session_folder, &arguments[0], path)) return -1;
  TVMFFIByteArray bytes = text_of(&arguments[1]);
  if (!bytes.data && bytes.size) return fail("no bytes to append");
  FILE* file = fopen(path, "ab");
  if (!file) return fail("cannot write: %s", strerror(errno));
  int bad = fwrite(bytes.data, 1, bytes.size, file) != bytes.size;
  int reason = errno;
  int64_t size = ftell(file);
  if (fclose(file) && !bad) bad = 1, reason = errno;
  return bad ? fail("cannot write: %s", strerror(reason)) : give_integer(result, size);
}

/* Remove the files that were not used for longest until there is room for one more. */
static void make_room(void) {
  for (;;) {
    int files = 0;
    time_t oldest_time = 0;
    char oldest[2 * PATH_BYTES] = "", path[2 * PATH_BYTES];
    DIR* folder = opendir(kept_folder);
    for (struct dirent* entry; folder && (entry = readdir(folder));) {
      struct stat status;
      if (entry->d_name[0] == '.') continue;
      snprintf(path, sizeof path, "%s/%s", kept_folder, entry->d_name);
      if (stat(path, &status)) continue;
      if (!files++ || status.st_mtime < oldest_time) {
        oldest_time = status.st_mtime;
        strcpy(oldest, path);
      }
    }
    if (folder) closedir(folder);
    if (files < KEPT_FILES || unlink(oldest)) return;
  }
}

/* (name): let the session's file stay for later sessions */
static int keep(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)self;
  char from[2 * PATH_BYTES], to[2 * PATH_BYTES];
  if (check_count(count, 1) || path_in(session_folder, &arguments[0], from) ||
      path_in(kept_folder, &arguments[0], to))
    return -1;
  make_room();
  if (rename(from, to)) return fail("cannot keep the file: %s", strerror(errno));
  return give_integer(result, 0);
}

/* (name) -> path: where TVM's own upload and download put a file */
static int work_path(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[2 * PATH_BYTES];
  if (check_count(count, 1) || path_in(session_folder, &arguments[0], path)) return -1;
  return give_text(result, path);
}

/* (name) -> module: load a file of this session, or one that was kept */
static int load_module(void* self, const TVMFFIAny* arguments, int32_t count, TVMFFIAny* result) {
  (void)self;
  char path[2 * PATH_BYTES];
  struct stat status;
  if (check_count(count, 1) || path_in(session_folder, &arguments[0], path)) return -1;
  if (stat(path, &status)) {
    if (path_in(kept_folder, &arguments[0], path)) return -1;
    if (stat(path, &status)) return fail("there is no such file on the board");
    utimes(path, NULL);
  }
  TVMFFIByteArray name = {"ffi.ModuleLoadFromFile", 22};
  TVMFFIObjectHandle load = NULL;
  if (TVMFFIFunctionGetGlobal(&name, &load)) return -1;
  TVMFFIAny argument = {.type_index = kTVMFFIRawStr, .v_c_str = path};
  int failed = TVMFFIFunctionCall(load, &argument, 1, result);
  TVMFFIObjectDecRef(load);
  return failed;
}

static const struct {
  const char* name;
  TVMFFISafeCallType call;
} functions[] = {
    {"edgec.board.facts", facts},
    {"edgec.board.kept", kept},
    {"edgec.board.append", append},
    {"edgec.board.keep", keep},
    {"tvm.rpc.server.workpath", work_path},
    {"tvm.rpc.server.load_module", load_module},
};

static int register_functions(void) {
  for (size_t i = 0; i < sizeof functions / sizeof *functions; ++i) {
    TVMFFIByteArray name = {functions[i].name, strlen(functions[i].name)};
    TVMFFIObjectHandle function = NULL;
    if (TVMFFIFunctionCreate(NULL, functions[i].call, NULL, &function) ||
        TVMFFIFunctionSetGlobal(&name, function, 1))
      return -1;
    TVMFFIObjectDecRef(function);
  }
  return 0;
}

/* ---- Sessions ---- */

static int send_all(int socket, const void* data, size_t bytes) {
  const char* next = data;
  while (bytes) {
    ssize_t sent = send(socket, next, bytes, MSG_NOSIGNAL);
    if (sent <= 0) return -1;
    next += sent, bytes -= (size_t)sent;
  }
  return 0;
}

static int receive_all(int socket, void* data, size_t bytes) {
  char* next = data;
  while (bytes) {
    ssize_t received = recv(socket, next, bytes, 0);
    if (received <= 0) return -1;
    next += received, bytes -= (size_t)received;
  }
  return 0;
}

/* A number and so many bytes; the text must fit. */
static int receive_text(int socket, char* text, size_t room) {
  int32_t size;
  if (receive_all(socket, &size, 4) || size < 0 || (size_t)size >= room) return -1;
  text[size] = 0;
  return receive_all(socket, text, (size_t)size);
}

static int send_text(int socket, const char* text) {
  int32_t size = (int32_t)strlen(text);
  return send_all(socket, &size, 4) || send_all(socket, text, (size_t)size) ? -1 : 0;
}

static void set_timeout(int socket, int seconds) {
  struct timeval time = {seconds, 0};
  setsockopt(socket, SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
  setsockopt(socket, SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

/* A peer that vanished is noticed within a minute. */
static void keep_alive(int socket) {
  int on = 1, idle = 30, interval = 10, probes = 3;
  setsockopt(socket, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(socket, IPPROTO_TCP, TCP_KEEPCNT, &probes, sizeof probes);
  setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void empty_session_folder(void) {
  char path[2 * PATH_BYTES];
  DIR* folder = opendir(session_folder);
  for (struct dirent* entry; folder && (entry = readdir(folder));) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    snprintf(path, sizeof path, "%s/%s", session_folder, entry->d_name);
    unlink(path);
  }
  if (folder) closedir(folder);
}

/* ---- What a session may do ---- */

/* Let this process write below STORE and to devices only, where the kernel can do that. */
static void restrict_files(void) {
#if defined(SYS_landlock_create_ruleset)
  const char* const places[] = {session_folder, kept_folder, "/dev"};
  struct landlock_ruleset_attr rules = {
      .handled_access_fs = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_REMOVE_FILE |
                           LANDLOCK_ACCESS_FS_REMOVE_DIR | LANDLOCK_ACCESS_FS_MAKE_DIR |
                           LANDLOCK_ACCESS_FS_MAKE_REG | LANDLOCK_ACCESS_FS_MAKE_SOCK |
                           LANDLOCK_ACCESS_FS_MAKE_FIFO | LANDLOCK_ACCESS_FS_MAKE_SYM};
  long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
  /* The first version cannot let a file move from folder to folder, as `keep` does. */
  if (abi < 2) return;
  rules.handled_access_fs |= LANDLOCK_ACCESS_FS_REFER;
  int ruleset = (int)syscall(SYS_landlock_create_ruleset, &rules, sizeof rules, 0);
  for (size_t i = 0; ruleset >= 0 && i < sizeof places / sizeof *places; ++i) {
    struct landlock_path_beneath_attr place = {.allowed_access = rules.handled_access_fs};
    place.parent_fd = open(places[i], O_PATH | O_CLOEXEC);
    if (place.parent_fd < 0) continue;
    syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &place, 0);
    close(place.parent_fd);
  }
  if (ruleset < 0) return;
  syscall(SYS_landlock_restrict_self, ruleset, 0);
  close(ruleset);
#endif
}

/* Give up what root may do beyond its own files, and stay within the memory that is there. */
static void drop_privileges(void) {
  struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
  struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};
  unsigned long long memory = available_memory();
  struct rlimit most = {(rlim_t)memory, (rlim_t)memory};
  syscall(SYS_capset, &header, none);
  restrict_files();
  if (memory) setrlimit(RLIMIT_DATA, &most);
}

static int call_with_integer(const char* function, int64_t value, const char* text) {
  TVMFFIByteArray name = {function, strlen(function)};
  TVMFFIObjectHandle handle = NULL;
  TVMFFIAny result = {0};
  TVMFFIAny arguments[] = {{.type_index = kTVMFFIInt, .v_int64 = value},
                           {.type_index = kTVMFFIRawStr, .v_c_str = text}};
  if (TVMFFIFunctionGetGlobal(&name, &handle) || !handle) return -1;
  return TVMFFIFunctionCall(handle, arguments, text ? 2 : 1, &result);
}

/* Serve one client until it leaves, or its time is over; `options` may say "-timeout=SECONDS". */
static void serve(int client, int listener, const char* options) {
  const char* limit = strstr(options, "-timeout=");
  double seconds = limit ? atof(limit + 9) : 0;
  if (!(seconds > 0 && seconds < SESSION_SECONDS)) seconds = SESSION_SECONDS;
  set_timeout(client, 0);
  keep_alive(client);
  empty_session_folder();
  pid_t server = getpid();
  pid_t child = fork();
  if (child == 0) {
    drop_privileges();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != server) _exit(1);
    if (listener >= 0) close(listener);
    _exit(call_with_integer("rpc.ServerLoop", client, NULL) ? 1 : 0);
  }
  struct timespec start, now;
  clock_gettime(CLOCK_MONOTONIC, &start);
  int status = 0;
  while (child > 0 && waitpid(child, &status, WNOHANG) == 0) {
    clock_gettime(CLOCK_MONOTONIC, &now);
    double passed = (double)(now.tv_sec - start.tv_sec) + 1e-9 * (now.tv_nsec - start.tv_nsec);
    if (passed > seconds) {
      kill(child, SIGKILL);
      waitpid(child, &status, 0);
      call_with_integer("rpc.ReturnException", client, "RPCSessionTimeoutError: session expired");
      break;
    }
    usleep(2000);
  }
  if (WIFSIGNALED(status)) fprintf(stderr, "session ended by signal %d\n", WTERMSIG(status));
  close(client);
  empty_session_folder();
}

static int split_address(const char* text, char* host, char* port) {
  const char* colon = strrchr(text, ':');
  if (!colon || colon == text || (size_t)(colon - text) >= KEY_BYTES || strlen(colon + 1) > 5)
    return -1;
  sprintf(host, "%.*s", (int)(colon - text), text);
  strcpy(port, colon + 1);
  return 0;
}

static int connect_to(const char* host, const char* port) {
  struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found = NULL;
  if (getaddrinfo(host, port, &hints, &found)) return -1;
  int peer = socket(found->ai_family, SOCK_STREAM, 0);
  if (peer >= 0 && connect(peer, found->ai_addr, found->ai_addrlen)) {
    close(peer);
    peer = -1;
  }
  freeaddrinfo(found);
  if (peer >= 0) keep_alive(peer);
  return peer;
}

/* ---- Clients that connect to us, perhaps sent by a tracker ---- */

typedef struct {
  const char* address; /* of the tracker, NULL if there is none */
  const char* key;
  int port;
  int socket;
  char match[2 * KEY_BYTES]; /* what a client must name */
  int unclaimed_pings;
} registration;

static int ask_tracker(registration* tracker, const char* question, char* reply, size_t room) {
  return send_text(tracker->socket, question) || receive_text(tracker->socket, reply, room) ? -1
                                                                                            : 0;
}

static void drop_tracker(registration* tracker) {
  if (tracker->socket >= 0) close(tracker->socket);
  tracker->socket = -1;
}

/* Tell the tracker that we wait, under a new match key. */
static int offer(registration* tracker) {
  char text[4 * KEY_BYTES], reply[64];
  snprintf(tracker->match, sizeof tracker->match, "%s:%ld.%d", tracker->key, random(), getpid());
  snprintf(text, sizeof text, "[3, \"%s\", [%d, \"%s\"], null]", tracker->key, tracker->port,
           tracker->match);
  tracker->unclaimed_pings = 0;
  return ask_tracker(tracker, text, reply, sizeof reply) || strcmp(reply, "0") ? -1 : 0;
}

static int register_with(registration* tracker) {
  char host[KEY_BYTES], port[8], text[4 * KEY_BYTES], reply[64];
  int32_t magic = TRACKER_MAGIC;
  if (split_address(tracker->address, host, port)) return -1;
  tracker->socket = connect_to(host, port);
  if (tracker->socket < 0) return -1;
  set_timeout(tracker->socket, HANDSHAKE_SECONDS);
  snprintf(text, sizeof text, "[5, {\"key\": \"server:%s\", \"addr\": [null, %d]}]", tracker->key,
           tracker->port);
  if (send_all(tracker->socket, &magic, 4) || receive_all(tracker->socket, &magic, 4) ||
      magic != TRACKER_MAGIC || ask_tracker(tracker, text, reply, sizeof reply) || offer(tracker)) {
    drop_tracker(tracker);
    return -1;
  }
  return 0;
}

/* Ask whether our offer still stands; a client that took it and never came loses it. */
static void ping(registration* tracker) {
  static char reply[1 << 16];
  if (ask_tracker(tracker, "[7]", reply, sizeof reply)) {
    drop_tracker(tracker);
    return;
  }
  tracker->unclaimed_pings = strstr(reply, tracker->match) ? 0 : tracker->unclaimed_pings + 1;
  if (tracker->unclaimed_pings >= PINGS_UNTIL_NEW_KEY && offer(tracker)) drop_tracker(tracker);
}

/* ---- Who may be served ---- */

static const char* secret_file;

/* The secret, which may change while we run: the length of its line, 0 if it is no secret. */
static size_t read_secret(char* secret, size_t room) {
  struct stat status;
  int file = open(secret_file, O_RDONLY | O_CLOEXEC);
  if (file < 0) return 0;
  ssize_t bytes = read(file, secret, room - 1);
  int open_to_others = fstat(file, &status) || status.st_mode & 077;
  close(file);
  if (bytes < 0 || open_to_others) return 0;
  secret[bytes] = 0;
  size_t length = strcspn(secret, "\r\n ");
  return length >= 32 ? length : 0;
}

static int64_t now_milliseconds(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

/* As receive_all, but all of it until a point in time: whoever is slow holds up the others. */
static int receive_until(int socket, uint8_t* data, size_t bytes, int64_t end) {
  while (bytes) {
    struct pollfd ready = {.fd = socket, .events = POLLIN};
    int64_t left = end - now_milliseconds();
    if (left <= 0 || poll(&ready, 1, (int)left) <= 0) return -1;
    ssize_t received = recv(socket, data, bytes, 0);
    if (received <= 0) return -1;
    data += received, bytes -= (size_t)received;
  }
  return 0;
}

/* Show a client that we know the secret, and see whether it does; nobody says it. */
static int authenticate(int client) {
  static const char hello[HELLO_BYTES + 1] = "edgec-1\n";
  uint8_t first[HELLO_BYTES], number[NUMBER_BYTES], answer[NUMBER_BYTES + CODE_BYTES];
  uint8_t text[12 + 2 * NUMBER_BYTES], code[CODE_BYTES], expected[CODE_BYTES], differ = 0;
  char secret[KEY_BYTES];
  size_t length = read_secret(secret, sizeof secret);
  int64_t end = now_milliseconds() + AUTHENTICATE_MILLISECONDS;
  if (!length || receive_until(client, first, sizeof first, end) ||
      memcmp(first, hello, HELLO_BYTES) || receive_until(client, number, sizeof number, end) ||
      getrandom(answer, NUMBER_BYTES, 0) != NUMBER_BYTES)
    return -1;
  memcpy(text, "edgec server", 12);
  memcpy(text + 12, number, NUMBER_BYTES);
  memcpy(text + 12 + NUMBER_BYTES, answer, NUMBER_BYTES);
  hmac_sha256(secret, length, text, sizeof text, answer + NUMBER_BYTES);
  memcpy(text, "edgec client", 12);
  hmac_sha256(secret, length, text, sizeof text, expected);
  if (send_all(client, answer, sizeof answer) || receive_until(client, code, sizeof code, end))
    return -1;
  for (int i = 0; i < CODE_BYTES; ++i) differ |= code[i] ^ expected[i];
  return differ ? -1 : 0;
}

/* Read who a client is and answer; its options, or NULL if it is not for us. */
static const char* greet(int client, const registration* us) {
  static char key[2 * KEY_BYTES], expected[3 * KEY_BYTES], answer[2 * KEY_BYTES];
  int32_t magic = 0;
  set_timeout(client, HANDSHAKE_SECONDS);
  if (receive_all(client, &magic, 4) || magic != MAGIC || receive_text(client, key, sizeof key))
    return NULL;
  size_t word = strcspn(key, " ");
  snprintf(expected, sizeof expected, "client:%s", us->match);
  if (strlen(expected) != word || strncmp(key, expected, word)) {
    magic = MISMATCH;
    send_all(client, &magic, 4);
    return NULL;
  }
  snprintf(answer, sizeof answer, "server:%s", us->key);
  return send_all(client, &magic, 4) || send_text(client, answer) ? NULL : key + word;
}

static int listen_on(const char* host, int* port) {
  int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
  socklen_t size = sizeof address;
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (inet_pton(AF_INET, host, &address.sin_addr) != 1 ||
      bind(listener, (struct sockaddr*)&address, size) || listen(listener, 4) ||
      getsockname(listener, (struct sockaddr*)&address, &size)) {
    fprintf(stderr, "cannot listen on %s:%d: %s\n", host, *port, strerror(errno));
    exit(1);
  }
  *port = ntohs(address.sin_port);
  return listener;
}

static void serve_listening(const char* host, int port, const char* key, const char* tracker) {
  int listener = listen_on(host, &port);
  registration us = {.address = tracker, .key = key, .port = port, .socket = -1};
  snprintf(us.match, sizeof us.match, "%s", key);
  printf("listening on %d\n", port);
  fflush(stdout);
  for (;;) {
    struct pollfd ready = {.fd = listener, .events = POLLIN};
    if (tracker) {
      if (us.socket < 0 && register_with(&us)) {
        sleep(RETRY_SECONDS);
        continue;
      }
      if (poll(&ready, 1, PING_MILLISECONDS) <= 0) {
        ping(&us);
        continue;
      }
    }
    int client = accept(listener, NULL, NULL);
    if (client < 0) continue;
    set_timeout(client, HANDSHAKE_SECONDS);
    const char* options = authenticate(client) ? NULL : greet(client, &us);
    if (!options) {
      close(client);
      continue;
    }
    serve(client, listener, options);
    if (tracker && us.socket >= 0 && offer(&us)) drop_tracker(&us);
  }
}

/* ---- Clients that a proxy brings ---- */

static void serve_through(const char* proxy, const char* key) {
  char host[KEY_BYTES], port[8], us[2 * KEY_BYTES], them[2 * KEY_BYTES];
  if (split_address(proxy, host, port)) return;
  snprintf(us, sizeof us, "server:%s", key);
  printf("connecting to proxy %s\n", proxy);
  fflush(stdout);
  for (;;) {
    int32_t magic = MAGIC;
    int peer = connect_to(host, port);
    /* The proxy answers when a client comes: that may take for ever. */
    if (peer >= 0 && !send_all(peer, &magic, 4) && !send_text(peer, us) &&
        !receive_all(peer, &magic, 4) && (magic == MAGIC || magic == MISMATCH) &&
        !receive_text(peer, them, sizeof them)) {
      serve(peer, -1, them);
      continue;
    }
    if (peer >= 0) close(peer);
    sleep(RETRY_SECONDS);
  }
}

static void make_folder(const char* path) {
  if (mkdir(path, 0700) && errno != EEXIST) {
    fprintf(stderr, "cannot make %s: %s\n", path, strerror(errno));
    exit(1);
  }
}

int main(int count, char** arguments) {
  const char *key = "", *tracker = NULL, *proxy = NULL;
  int usable = count >= 4 && count % 2 == 0;
  for (int i = 4; usable && i < count; i += 2) {
    if (!strcmp(arguments[i], "--key")) key = arguments[i + 1];
    else if (!strcmp(arguments[i], "--secret")) secret_file = arguments[i + 1];
    else if (!strcmp(arguments[i], "--tracker")) tracker = arguments[i + 1];
    else if (!strcmp(arguments[i], "--proxy")) proxy = arguments[i + 1];
    else usable = 0;
  }
  if (!usable || strlen(key) >= KEY_BYTES || strlen(arguments[3]) > PATH_BYTES - 16) {
    fprintf(stderr,
            "usage: %s HOST PORT STORE --secret FILE [--key KEY] [--tracker H:P | --proxy H:P]\n",
            arguments[0]);
    return 2;
  }
  char secret[KEY_BYTES];
  if (!proxy && (!secret_file || !read_secret(secret, sizeof secret))) {
    fprintf(stderr, "--secret names a file of at least 32 letters that only its owner can read\n");
    return 2;
  }
  struct rlimit none = {0, 0};
  setrlimit(RLIMIT_CORE, &none);
  prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
  signal(SIGPIPE, SIG_IGN);
  srandom((unsigned)time(NULL) ^ (unsigned)getpid());
  snprintf(session_folder, sizeof session_folder, "%s/session", arguments[3]);
  snprintf(kept_folder, sizeof kept_folder, "%s/kept", arguments[3]);
  make_folder(arguments[3]);
  make_folder(session_folder);
  make_folder(kept_folder);
  /* Random inputs for tuning; a board may lack it. */
  dlopen("libtvm_runtime_extra.so", RTLD_NOW | RTLD_LOCAL);
  if (register_functions()) {
    fprintf(stderr, "cannot register functions\n");
    return 1;
  }
  if (proxy) serve_through(proxy, key);
  else serve_listening(arguments[1], atoi(arguments[2]), key, tracker);
  return 1;
}
