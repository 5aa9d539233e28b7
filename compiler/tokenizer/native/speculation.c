/* Guesses of what follows, and an account of what they cost. */
#include "speculation.h"

#include <time.h>

/* Tokens that must have been there before, and those that are compared at most. */
enum { LEAST_MATCH = 2, MOST_MATCH = 16 };
/* Where kinds begin. */
enum { FEW = 3, MANY = 6 };
/* Time that guesses of a kind may lose, as a share of all, and what is saved of it, in runs of a
 * token. */
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
  return longest;
}

static int kind_of(size_t matching) { return matching < FEW ? 0 : matching < MANY ? 1 : 2; }

int edgec_guesses_pay(const edgec_guess_account* account, size_t matching) {
  return account->plain > 0 && account->balance[kind_of(matching)] >= 0;
}

static void change_balance(edgec_guess_account* account, int kind, double by) {
  double most = MOST_SAVED * account->plain, changed = account->balance[kind] + by;
  account->balance[kind] = changed < most ? changed : most;
}

/* A run that something else held up says little. */
static void note_time(double* kept, double found) {
  if (*kept > 0 && found > 2 * *kept) found = 2 * *kept;
  *kept = *kept > 0 ? *kept + NEW * (found - *kept) : found;
}

void edgec_note_plain(edgec_guess_account* account, double nanoseconds) {
  note_time(&account->plain, nanoseconds);
  for (int kind = 0; kind < EDGEC_GUESS_KINDS; ++kind)
    change_balance(account, kind, SHARE * account->plain);
}

void edgec_note_checked(edgec_guess_account* account, size_t matching, double nanoseconds) {
  note_time(&account->checked, nanoseconds);
  account->kind = kind_of(matching);
  if (account->checked > account->plain)
    change_balance(account, account->kind, account->plain - account->checked);
}

void edgec_note_right(edgec_guess_account* account) {
  change_balance(account, account->kind, account->plain);
}

double edgec_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return 1e9 * (double)now.tv_sec + (double)now.tv_nsec;
}
