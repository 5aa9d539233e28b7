/* The part of the program `run` for language models: a text that goes on, or a chat. */
#include "talk.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "generator.h"
#include "process.h"

enum { USAGE = 2, BAD_INPUT = 4 };

const char talk_usage[] =
    "of language models:\n"
    "  --prompt TEXT              go on with a text; --prompt-file FILE reads it\n"
    "  --chat                     talk; /reset begins anew, /exit or the end of the input ends it\n"
    "  --system TEXT              what a chat begins with\n"
    "  --max-tokens N             at most so many (default 256)\n"
    "  --temperature T            0, the default: the likeliest token\n"
    "  --top-k N --top-p P --min-p P --repetition-penalty P --seed N\n"
    "  --speculate N|auto|off     guess up to N tokens where text repeats; auto, the default: as long\n"
    "                             as that is faster\n"
    "  --stop TEXT                end before this text; may be given more than once\n"
    "  --prompt-cache FILE        begin with what is in the file, and keep what was read in it\n"
    "  --threads N                as above\n"
    "  --json                     of --prompt: tokens, text and times as JSON\n";

#define MOST_STOPS 16

typedef struct {
  const char *prompt, *prompt_file, *system, *cache;
  const char* stops[MOST_STOPS];
  int stop_count, chat, json;
  int32_t threads, guesses;
  int64_t most_tokens;
  edgec_sampling sampling;
} request;

typedef struct {
  edgec_session* session;
  edgec_tokenizer* tokenizer;
  edgec_generator* generator;
  double began_ms;
} speaker;

/* ---- the command line ---- */

int asks_for_text(int count, char** arguments) {
  for (int i = 1; i < count; ++i)
    if (!strcmp(arguments[i], "--prompt") || !strcmp(arguments[i], "--prompt-file") ||
        !strcmp(arguments[i], "--chat"))
      return 1;
  return 0;
}

static double number(const char* option, const char* value, double least, double most) {
  char* end;
  double found = strtod(value, &end);
  if (end == value || *end || !(found >= least && found <= most))
    fail(USAGE, "%s is %s; give a number from %g to %g", option, value, least, most);
  return found;
}

static int64_t whole(const char* option, const char* value, int64_t most) {
  char* end;
  errno = 0;
  long long found = strtoll(value, &end, 10);
  if (errno || end == value || *end || found < 0 || found > most)
    fail(USAGE, "%s is %s; give a whole number from 0 to %" PRId64, option, value, most);
  return found;
}

static int32_t guesses(const char* option, const char* value) {
  char* end;
  if (!strcmp(value, "auto")) return EDGEC_GUESSES_THAT_PAY;
  if (!strcmp(value, "off")) return 0;
  long found = strtol(value, &end, 10);
  if (end == value || *end || found < 0 || found > 1024)
    fail(USAGE, "%s is %s; give auto, off or a number up to 1024", option, value);
  return (int32_t)found;
}

static void read_option(request* asked, const char* option, const char* value) {
  if (!strcmp(option, "--prompt"))
    asked->prompt = value;
  else if (!strcmp(option, "--prompt-file"))
    asked->prompt_file = value;
  else if (!strcmp(option, "--system"))
    asked->system = value;
  else if (!strcmp(option, "--prompt-cache"))
    asked->cache = value;
  else if (!strcmp(option, "--bundle"))
    return; /* runner.c read it */
  else if (!strcmp(option, "--max-tokens"))
    asked->most_tokens = whole(option, value, INT32_MAX);
  else if (!strcmp(option, "--threads"))
    asked->threads = (int32_t)whole(option, value, 1024);
  else if (!strcmp(option, "--speculate"))
    asked->guesses = guesses(option, value);
  else if (!strcmp(option, "--seed"))
    asked->sampling.seed = (uint64_t)whole(option, value, INT64_MAX);
  else if (!strcmp(option, "--top-k"))
    asked->sampling.top_k = (int32_t)whole(option, value, INT32_MAX);
  else if (!strcmp(option, "--temperature"))
    asked->sampling.temperature = (float)number(option, value, 0, 100);
  else if (!strcmp(option, "--top-p"))
    asked->sampling.top_p = (float)number(option, value, 1e-6, 1);
  else if (!strcmp(option, "--min-p"))
    asked->sampling.min_p = (float)number(option, value, 0, 1);
  else if (!strcmp(option, "--repetition-penalty"))
    asked->sampling.repetition_penalty = (float)number(option, value, 0.01, 100);
  else if (strcmp(option, "--stop"))
    fail(USAGE, "unknown option %s; see ./run --help", option);
  else if (asked->stop_count == MOST_STOPS)
    fail(USAGE, "--stop is given more than %d times", MOST_STOPS);
  else
    asked->stops[asked->stop_count++] = value;
}

static request read_request(int count, char** arguments) {
  request asked = {.most_tokens = 256, .guesses = EDGEC_GUESSES_THAT_PAY};
  for (int i = 1; i < count; ++i) {
    const char* option = arguments[i];
    if (!strcmp(option, "--chat"))
      asked.chat = 1;
    else if (!strcmp(option, "--json"))
      asked.json = 1;
    else if (i + 1 == count)
      fail(USAGE, "%s is unknown or needs a value; see ./run --help", option);
    else
      read_option(&asked, option, arguments[++i]);
  }
  if (!!asked.prompt + !!asked.prompt_file + asked.chat > 1)
    fail(USAGE, "give one of --prompt, --prompt-file and --chat");
  if (asked.chat && asked.json) fail(USAGE, "--json is for --prompt, not for --chat");
  if (asked.system && !asked.chat) fail(USAGE, "--system is for --chat");
  return asked;
}

/* ---- files ---- */

/* The content of a file, ended by a zero; its bytes. */
static char* read_file(const char* path, size_t* bytes) {
  FILE* file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
  if (!file) fail(BAD_INPUT, "cannot read %s: %s", path, strerror(errno));
  size_t room = 1 << 16;
  char* text = malloc(room);
  *bytes = 0;
  while (text && (*bytes += fread(text + *bytes, 1, room - *bytes, file)) == room) {
    char* larger = realloc(text, room *= 2);
    if (!larger) free(text);
    text = larger;
  }
  if (!text) fail(BAD_INPUT, "no memory for %s", path);
  if (ferror(file)) fail(BAD_INPUT, "cannot read %s: %s", path, strerror(errno));
  if (file != stdin) fclose(file);
  text[*bytes] = 0;
  return text;
}

static edgec_tokenizer* map_tokenizer(const char* path) {
  char message[256];
  struct stat status;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  if (file < 0 || fstat(file, &status))
    fail(BAD_INPUT, "the bundle is of no language model: cannot read %s: %s", path,
         strerror(errno));
  size_t bytes = (size_t)status.st_size;
  void* data = mmap(NULL, bytes ? bytes : 1, PROT_READ, MAP_PRIVATE, file, 0);
  if (data == MAP_FAILED) fail(BAD_INPUT, "cannot map %s: %s", path, strerror(errno));
  close(file);
  edgec_tokenizer* tokenizer = edgec_tokenizer_open(data, bytes, message, sizeof message);
  if (!tokenizer) fail(BAD_INPUT, "%s", message);
  return tokenizer;
}

static void load_cache(speaker* speaker, const char* path) {
  if (!path || access(path, F_OK)) return;
  if (edgec_generator_load(speaker->generator, path, edgec_model_digest(speaker->tokenizer)))
    fail(BAD_INPUT, "%s", edgec_generator_error(speaker->generator));
}

static void save_cache(speaker* speaker, const char* path) {
  if (path &&
      edgec_generator_save(speaker->generator, path, edgec_model_digest(speaker->tokenizer)))
    fail(BAD_INPUT, "%s", edgec_generator_error(speaker->generator));
}

/* ---- text ---- */

static void print_json_text(const char* text, size_t bytes) {
  putchar('"');
  for (size_t i = 0; i < bytes; ++i) {
    unsigned char byte = (unsigned char)text[i];
    if (byte == '"' || byte == '\\')
      printf("\\%c", byte);
    else if (byte < 0x20 || byte == 0x7F)
      printf("\\u%04x", byte);
    else
      putchar(byte);
  }
  putchar('"');
}

/* What a reply left. */
typedef struct {
  char* text;
  size_t bytes;
  int32_t* tokens;
  size_t count;
  int reason;
  double first_ms, last_ms; /* when the first and the last token were there */
} answer;

static void append(char** text, size_t* bytes, const char* added, size_t size) {
  char* longer = realloc(*text, *bytes + size + 1);
  if (!longer) fail(BAD_INPUT, "no memory for the text");
  memcpy(longer + *bytes, added, size);
  *bytes += size;
  longer[*bytes] = 0;
  *text = longer;
}

static const char* reason_name(int reason) {
  static const char* const names[] = {"", "end", "length", "stop", "context"};
  return names[reason];
}

/* Read tokens and generate; `shown` is where the text goes meanwhile. */
static answer reply_to(speaker* speaker, const request* asked, const int32_t* ids, size_t count,
                       int continues, FILE* shown) {
  edgec_generator* generator = speaker->generator;
  int64_t computed = edgec_generator_read(generator, ids, count);
  if (computed < 0) fail(BAD_INPUT, "%s", edgec_generator_error(generator));
  edgec_reply* reply = edgec_reply_open(generator, speaker->tokenizer, &asked->sampling,
                                        asked->most_tokens, continues);
  if (!reply) fail(BAD_INPUT, "no memory for a reply");
  for (int i = 0; i < asked->stop_count; ++i)
    if (edgec_reply_stop_at(reply, asked->stops[i], strlen(asked->stops[i])))
      fail(BAD_INPUT, "--stop %s is not UTF-8", asked->stops[i]);
  answer answer = {0};
  append(&answer.text, &answer.bytes, "", 0);
  for (;;) {
    const char* text;
    int64_t bytes;
    int32_t id = edgec_reply_next(reply, &text, &bytes);
    answer.reason = edgec_reply_reason(reply);
    if (answer.reason == EDGEC_REPLY_FAILED) {
      const char* problem = edgec_generator_error(generator);
      fail(BAD_INPUT, "%s", *problem ? problem : "no token can follow: no logit is a number");
    }
    if (bytes > 0) {
      append(&answer.text, &answer.bytes, text, (size_t)bytes);
      if (shown) fwrite(text, 1, (size_t)bytes, shown), fflush(shown);
    }
    if (id < 0) break;
    answer.last_ms = now_ms();
    if (!answer.count) answer.first_ms = answer.last_ms;
    int32_t* more = realloc(answer.tokens, (answer.count + 1) * sizeof *more);
    if (!more) fail(BAD_INPUT, "no memory for tokens");
    answer.tokens = more;
    answer.tokens[answer.count++] = id;
  }
  edgec_reply_close(reply);
  return answer;
}

static size_t encode(const speaker* speaker, const char* text, size_t bytes, int template_tokens,
                     const char* what, int32_t** ids) {
  int64_t count = edgec_encode(speaker->tokenizer, text, bytes, template_tokens, ids);
  if (count == EDGEC_TEXT_NOT_UTF8) fail(BAD_INPUT, "%s is not UTF-8", what);
  if (count < 0) fail(BAD_INPUT, "no memory for the tokens of %zu bytes", bytes);
  return (size_t)count;
}

static void tell_reason(const speaker* speaker, const request* asked, int reason) {
  if (reason == EDGEC_REPLY_CONTEXT)
    fprintf(stderr, "run: the context of %" PRId32 " tokens is full\n",
            edgec_generator_context(speaker->generator));
  if (reason == EDGEC_REPLY_LENGTH)
    fprintf(stderr, "run: stopped after %" PRId64 " tokens (--max-tokens)\n", asked->most_tokens);
}

static void print_summary(const speaker* speaker, const answer* answer, size_t prompt_tokens) {
  printf("{\"prompt_tokens\": %zu, \"tokens\": [", prompt_tokens);
  for (size_t i = 0; i < answer->count; ++i)
    printf("%s%" PRId32, i ? ", " : "", answer->tokens[i]);
  printf("],\n \"text\": ");
  print_json_text(answer->text, answer->bytes);
  printf(",\n \"reason\": \"%s\", \"first_token_ms\": ", reason_name(answer->reason));
  if (answer->count)
    printf("%.6g", answer->first_ms - speaker->began_ms);
  else
    printf("null");
  printf(", \"tokens_per_second\": ");
  if (answer->count > 1)
    printf("%.6g", 1e3 * (double)(answer->count - 1) / (answer->last_ms - answer->first_ms));
  else
    printf("null");
  printf("}\n");
}

static void go_on(speaker* speaker, const request* asked) {
  size_t bytes;
  char* read = asked->prompt ? NULL : read_file(asked->prompt_file, &bytes);
  const char* text = read ? read : asked->prompt;
  if (!read) bytes = strlen(text);
  int32_t* ids;
  size_t count = encode(speaker, text, bytes, 1, "the prompt", &ids);
  if (!count)
    fail(BAD_INPUT, "the prompt is empty; give the model at least one token to go on");
  FILE* shown = asked->json ? NULL : stdout;
  answer answer = reply_to(speaker, asked, ids, count, 1, shown);
  if (asked->json)
    print_summary(speaker, &answer, count);
  else
    putchar('\n');
  tell_reason(speaker, asked, answer.reason);
  free(answer.text);
  free(answer.tokens);
  edgec_free(ids);
  free(read);
}

/* ---- chats ---- */

typedef struct {
  const char** roles;
  char** contents;
  size_t count;
} history;

static void remember(history* history, const char* role, const char* content) {
  size_t count = history->count + 1;
  history->roles = realloc(history->roles, count * sizeof *history->roles);
  history->contents = realloc(history->contents, count * sizeof *history->contents);
  if (!history->roles || !history->contents) fail(BAD_INPUT, "no memory for the chat");
  history->roles[history->count] = role;
  history->contents[history->count] = strdup(content);
  if (!history->contents[history->count++]) fail(BAD_INPUT, "no memory for the chat");
}

static void forget(history* history, size_t kept) {
  while (history->count > kept) free(history->contents[--history->count]);
}

/* Answer the last message of a history. */
static void answer_to(speaker* speaker, const request* asked, history* history) {
  char* text;
  int32_t* ids;
  int64_t bytes =
      edgec_chat_text(speaker->tokenizer, history->roles, (const char* const*)history->contents,
                      history->count, &text);
  if (bytes == EDGEC_TEXT_NOT_UTF8) {
    fputs("run: the message is not UTF-8 and was left out\n", stderr);
    forget(history, history->count - 1);
    return;
  }
  if (bytes == EDGEC_TEXT_NO_CHAT)
    fail(BAD_INPUT, asked->system ? "the model has no words for a system message here"
                                  : "the model has no words for chats here; use --prompt");
  if (bytes < 0) fail(BAD_INPUT, "no memory for the chat");
  size_t count = encode(speaker, text, (size_t)bytes, 0, "the chat", &ids);
  if (count >= (size_t)edgec_generator_context(speaker->generator)) {
    fprintf(stderr, "run: the context of %" PRId32 " tokens is full; /reset begins anew\n",
            edgec_generator_context(speaker->generator));
    forget(history, history->count - 1);
  } else {
    answer answer = reply_to(speaker, asked, ids, count, 0, stdout);
    putchar('\n');
    fflush(stdout);
    tell_reason(speaker, asked, answer.reason);
    remember(history, "assistant", answer.text);
    free(answer.text);
    free(answer.tokens);
  }
  edgec_free(ids);
  free(text);
}

static void chat(speaker* speaker, const request* asked) {
  history history = {0};
  size_t room = 0;
  char* line = NULL;
  if (asked->system) remember(&history, "system", asked->system);
  for (;;) {
    if (isatty(STDIN_FILENO)) fputs("> ", stderr);
    ssize_t bytes = getline(&line, &room, stdin);
    if (bytes < 0) break;
    while (bytes && (line[bytes - 1] == '\n' || line[bytes - 1] == '\r')) line[--bytes] = 0;
    if (!strcmp(line, "/exit")) break;
    if (!strcmp(line, "/reset")) {
      forget(&history, asked->system ? 1 : 0);
    } else if (*line) {
      remember(&history, "user", line);
      answer_to(speaker, asked, &history);
    }
  }
  forget(&history, 0);
  free(history.roles);
  free(history.contents);
  free(line);
}

int talk(const edgec_model* code, const char* tokenizer, double began_ms, int count,
         char** arguments) {
  char message[256];
  request asked = read_request(count, arguments);
  speaker speaker = {.began_ms = began_ms, .tokenizer = map_tokenizer(tokenizer)};
  speaker.session = code->open(asked.threads);
  if (!speaker.session)
    fail(BAD_INPUT, "no threads, or no memory for %zu bytes", code->arena_bytes);
  speaker.generator = edgec_generator_open(code, speaker.session, 0, message, sizeof message);
  if (!speaker.generator) fail(BAD_INPUT, "%s", message);
  edgec_generator_speculate(speaker.generator, asked.guesses);
  load_cache(&speaker, asked.cache);
  if (asked.chat)
    chat(&speaker, &asked);
  else
    go_on(&speaker, &asked);
  save_cache(&speaker, asked.cache);
  edgec_generator_close(speaker.generator);
  edgec_tokenizer_close(speaker.tokenizer);
  code->close(speaker.session);
  if (fflush(stdout) || ferror(stdout)) fail(BAD_INPUT, "cannot write to the standard output");
  return 0;
}
