/* A reply, token by token: choose, put into text, read. */
#include <stdlib.h>

#include "generator.h"

struct edgec_reply {
  edgec_generator* generator;
  const edgec_tokenizer* tokenizer;
  edgec_sampler* sampler;
  edgec_stream* stream;
  int64_t left;     /* tokens that may still come */
  int32_t unread;   /* token that was given and not yet read, -1: none */
  int unreadable;   /* why the last one could not be read; EDGEC_REPLY_GOES_ON if it could */
  int reason;
};

edgec_reply* edgec_reply_open(edgec_generator* generator, const edgec_tokenizer* tokenizer,
                              const edgec_sampling* sampling, int64_t most_tokens, int continues) {
  edgec_reply* reply = calloc(1, sizeof *reply);
  if (!reply) return NULL;
  *reply = (edgec_reply){.generator = generator, .tokenizer = tokenizer, .left = most_tokens};
  reply->unread = -1;
  reply->sampler = edgec_sampler_open(edgec_generator_vocabulary(generator), sampling);
  reply->stream = edgec_stream_open(tokenizer, continues, 0);
  if (!reply->sampler || !reply->stream) {
    edgec_reply_close(reply);
    return NULL;
  }
  const int32_t* ids;
  size_t count = edgec_generator_tokens(generator, &ids);
  for (size_t i = 0; i < count; ++i) edgec_sampler_note(reply->sampler, ids[i]);
  return reply;
}

void edgec_reply_close(edgec_reply* reply) {
  if (!reply) return;
  edgec_sampler_close(reply->sampler);
  edgec_stream_close(reply->stream);
  free(reply);
}

int edgec_reply_stop_at(edgec_reply* reply, const char* text, size_t bytes) {
  return edgec_stream_stop_at(reply->stream, text, bytes);
}

int edgec_reply_reason(const edgec_reply* reply) { return reply->reason; }

static void note_read(edgec_reply* reply, int64_t read) {
  reply->unread = -1;
  reply->unreadable = read == EDGEC_CONTEXT_FULL ? EDGEC_REPLY_CONTEXT
                      : read < 0                 ? EDGEC_REPLY_FAILED
                                                 : EDGEC_REPLY_GOES_ON;
}

void edgec_replies_read(edgec_reply* const* replies, size_t count) {
  edgec_generator** generators = calloc(count + 1, sizeof *generators);
  int32_t* ids = calloc(count + 1, sizeof *ids);
  int64_t* results = calloc(count + 1, sizeof *results);
  edgec_reply** reading = calloc(count + 1, sizeof *reading);
  size_t chosen = 0;
  for (size_t i = 0; generators && ids && results && reading && i < count; ++i) {
    edgec_reply* reply = replies[i];
    if (reply->reason || !reply->left || reply->unread < 0) continue;
    reading[chosen] = reply;
    generators[chosen] = reply->generator;
    ids[chosen++] = reply->unread;
  }
  if (chosen) edgec_generators_append(generators, ids, chosen, results);
  for (size_t i = 0; i < chosen; ++i) note_read(reading[i], results[i]);
  free(reading);
  free(results);
  free(ids);
  free(generators);
}

/* Why no token can follow, before one is chosen. */
static int read_last(edgec_reply* reply) {
  if (!reply->left) return EDGEC_REPLY_LENGTH;
  if (reply->unread >= 0)
    note_read(reply, edgec_generator_append(reply->generator, reply->unread));
  return reply->unreadable;
}

static int choose(edgec_reply* reply, int32_t* id) {
  int reason = read_last(reply);
  if (reason) return reason;
  *id = edgec_sample(reply->sampler, edgec_generator_logits(reply->generator));
  if (*id < 0) return EDGEC_REPLY_FAILED;
  return edgec_is_stop_token(reply->tokenizer, *id) ? EDGEC_REPLY_END : EDGEC_REPLY_GOES_ON;
}

int32_t edgec_reply_next(edgec_reply* reply, const char** text, int64_t* bytes) {
  int32_t id = -1;
  *text = "";
  *bytes = 0;
  if (reply->reason) return -1;
  reply->reason = choose(reply, &id);
  if (reply->reason) {
    *bytes = edgec_stream_end(reply->stream, text);
    return -1;
  }
  --reply->left;
  reply->unread = id;
  edgec_sampler_note(reply->sampler, id);
  *bytes = edgec_stream_put(reply->stream, id, text);
  if (*bytes < 0) {
    reply->reason = EDGEC_REPLY_FAILED;
    return -1;
  }
  if (edgec_stream_stopped(reply->stream)) reply->reason = EDGEC_REPLY_STOP;
  return id;
}
