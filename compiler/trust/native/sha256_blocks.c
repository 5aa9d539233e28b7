#include "sha256_blocks.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__) && defined(__ARM_NEON)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

static const uint32_t constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotate(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

static void compress(uint32_t state[8], const uint8_t* block) {
  uint32_t w[64], a = state[0], b = state[1], c = state[2], d = state[3];
  uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
  for (int i = 0; i < 16; ++i, block += 4)
    w[i] = (uint32_t)block[0] << 24 | (uint32_t)block[1] << 16 | (uint32_t)block[2] << 8 | block[3];
  for (int i = 16; i < 64; ++i) {
    uint32_t low = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
    uint32_t high = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
    w[i] = w[i - 16] + low + w[i - 7] + high;
  }
  for (int i = 0; i < 64; ++i) {
    uint32_t one = h + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) + ((e & f) ^ (~e & g)) +
                   constants[i] + w[i];
    uint32_t two = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
    h = g, g = f, f = e, e = d + one;
    d = c, c = b, b = a, a = one + two;
  }
  state[0] += a, state[1] += b, state[2] += c, state[3] += d;
  state[4] += e, state[5] += f, state[6] += g, state[7] += h;
}

/* What runs only where the CPU has its instructions: the target's are no bound. */
#define ASKED_FOR __attribute__((section("edgec_asked_for")))

void sha256_blocks_portable(uint32_t state[8], const uint8_t* data, size_t blocks) {
  for (; blocks; --blocks, data += 64) compress(state, data);
}

#if defined(__x86_64__)

/* The instructions take the state as ABEF and CDGH, and two rounds' constants at once (Intel, SHA
   Extensions, 2013). m[r % 4] holds W[4 r .. 4 r + 3]. */
ASKED_FOR __attribute__((target("sha,sse4.1"))) static void sha256_blocks_x86(
    uint32_t state[8], const uint8_t* data, size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
  __m128i dcba = _mm_loadu_si128((const __m128i*)state);
  __m128i hgfe = _mm_loadu_si128((const __m128i*)(state + 4));
  __m128i cdab = _mm_shuffle_epi32(dcba, 0xb1), efgh = _mm_shuffle_epi32(hgfe, 0x1b);
  __m128i abef = _mm_alignr_epi8(cdab, efgh, 8), cdgh = _mm_blend_epi16(efgh, cdab, 0xf0);
  for (; blocks; --blocks, data += 64) {
    __m128i m[4], before_abef = abef, before_cdgh = cdgh;
    for (int r = 0; r < 16; ++r) {
      __m128i* w = &m[r % 4];
      if (r < 4) {
        *w = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)(data + 16 * r)), big_endian);
      } else {
        __m128i last = m[(r + 3) % 4];
        __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(*w, m[(r + 1) % 4]),
                                    _mm_alignr_epi8(last, m[(r + 2) % 4], 4));
        *w = _mm_sha256msg2_epu32(sum, last);
      }
      __m128i k = _mm_add_epi32(*w, _mm_loadu_si128((const __m128i*)(constants + 4 * r)));
      cdgh = _mm_sha256rnds2_epu32(cdgh, abef, k);
      abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(k, 0x0e));
    }
    abef = _mm_add_epi32(abef, before_abef), cdgh = _mm_add_epi32(cdgh, before_cdgh);
  }
  __m128i feba = _mm_shuffle_epi32(abef, 0x1b), dchg = _mm_shuffle_epi32(cdgh, 0xb1);
  _mm_storeu_si128((__m128i*)state, _mm_blend_epi16(feba, dchg, 0xf0));
  _mm_storeu_si128((__m128i*)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

sha256_compressor* sha256_blocks_native(void) {
  unsigned a, b, c, d, extended;
  if (!__get_cpuid_count(7, 0, &a, &extended, &c, &d) || !__get_cpuid(1, &a, &b, &c, &d)) return 0;
  int has_sse = (c & bit_SSSE3) && (c & bit_SSE4_1), has_sha = extended >> 29 & 1;
  return has_sse && has_sha ? sha256_blocks_x86 : 0;
}

#elif defined(__aarch64__) && defined(__linux__) && defined(__ARM_NEON)

#if defined(__clang__)
#define WITH_SHA2 __attribute__((target("sha2")))
#else
#define WITH_SHA2 __attribute__((target("+crypto")))
#endif

ASKED_FOR WITH_SHA2 static void sha256_blocks_arm(uint32_t state[8], const uint8_t* data,
                                                  size_t blocks) {
  uint32x4_t abcd = vld1q_u32(state), efgh = vld1q_u32(state + 4);
  for (; blocks; --blocks, data += 64) {
    uint32x4_t m[4], before_abcd = abcd, before_efgh = efgh;
    for (int r = 0; r < 16; ++r) {
      uint32x4_t* w = &m[r % 4];
      if (r < 4)
        *w = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * r)));
      else
        *w = vsha256su1q_u32(vsha256su0q_u32(*w, m[(r + 1) % 4]), m[(r + 2) % 4], m[(r + 3) % 4]);
      uint32x4_t k = vaddq_u32(*w, vld1q_u32(constants + 4 * r)), old = abcd;
      abcd = vsha256hq_u32(abcd, efgh, k);
      efgh = vsha256h2q_u32(efgh, old, k);
    }
    abcd = vaddq_u32(abcd, before_abcd), efgh = vaddq_u32(efgh, before_efgh);
  }
  vst1q_u32(state, abcd);
  vst1q_u32(state + 4, efgh);
}

sha256_compressor* sha256_blocks_native(void) {
  const unsigned long has_sha2 = 1ul << 6; /* HWCAP_SHA2 of Linux */
  return getauxval(AT_HWCAP) & has_sha2 ? sha256_blocks_arm : 0;
}

#else

sha256_compressor* sha256_blocks_native(void) { return 0; }

#endif

void sha256_blocks(uint32_t state[8], const uint8_t* data, size_t blocks) {
  /* Threads that come here at once find the same. */
  static sha256_compressor* chosen;
  sha256_compressor* compressor = __atomic_load_n(&chosen, __ATOMIC_RELAXED);
  if (!compressor) {
    compressor = sha256_blocks_native();
    if (!compressor) compressor = sha256_blocks_portable;
    __atomic_store_n(&chosen, compressor, __ATOMIC_RELAXED);
  }
  compressor(state, data, blocks);
}
