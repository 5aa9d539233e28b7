/* Guesses of what follows, and an account of what they cost. */
#include "speculation.h"

#include <time.h>

/* Tokens that must have been there before, and those that are compared at most. */
enum { LEAST_MATCH = 2, MOST_MATCH = 16 };
/* Time that guesses may lose, as a share of all, and what is saved of it, in runs of a token. */
static const double SHARE = 0.01, MOST_SAVED = 2;
/* What a new time weighs beside those before. */
static const double NEW = 0.25;

size_t edgec_guess(const int32_t* tokens, size_t count, int32_t* guesses, size_t most) {
  size_t longest = LEAST_MATCH - 1, behind = 0;
  for (size_t end = count; end-- > 1 && longest < MOST_MATCH;) {
    if (tokens[end - 1] != tokens[count - 1]) continue;
    size_t length = 1;
    while (length < MOST_MATCH && length < end &&
           tokens[end - 1 - length] == tokens[count - 1 - length])
      ++length;
    if (length <= longest) continue;
    longest = length;
    behind = end;
  }
  if (!behind) return 0;
  for (size_t i = 0; i < most; ++i) guesses[i] = tokens[behind + i % (count - behind)];
  return most;
}

int edgec_guesses_pay(const edgec_guess_account* account) {
  return account->plain > 0 && account->balance >= 0;
}

static void change_balance(edgec_guess_account* account, double by) {
  account->balance += by;
  if (account->balance > MOST_SAVED * account->plain)
    account->balance = MOST_SAVED * account->plain;
}

/* A run that something else held up says little. */
static void note_time(double* kept, double found) {
  if (*kept > 0 && found > 2 * *kept) found = 2 * *kept;
  *kept = *kept > 0 ? *kept + NEW * (found - *kept) : found;
}

void edgec_note_plain(edgec_guess_account* account, double nanoseconds) {
  note_time(&account->plain, nanoseconds);
  change_balance(account, SHARE * account->plain);
}

void edgec_note_checked(edgec_guess_account* account, double nanoseconds) {
  note_time(&account->checked, nanoseconds);
  if (account->checked > account->plain)
    change_balance(account, account->plain - account->checked);
}

void edgec_note_right(edgec_guess_account* account) { change_balance(account, account->plain); }

double edgec_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}
