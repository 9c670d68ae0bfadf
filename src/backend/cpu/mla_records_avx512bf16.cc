// Cache records as BF16 values and a scale for each of their two parts: exact, since codes of INT8
// have 7 bits, E4M3 has 4, and an E2M1 code times its E4M3 block scale at most 6.
#include "backend/cpu/mla_kernels.h"

#if defined(__x86_64__)

#include <cstring>

#include "backend/cpu/intrinsics.h"
#include "base/check.h"
#include "base/numbers.h"

namespace nibble {
namespace {

#if defined(__clang__)
#pragma clang attribute push(                                                          \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
#endif

inline __m256i load_bytes(const uint8_t* from) {
  return _mm256_loadu_si256((const __m256i*)from);
}

float load_scale(const uint8_t* bf16) {
  uint16_t bits;
  std::memcpy(&bits, bf16, sizeof(bits));
  return bf16_to_float(bits);
}

// 32 codes at a time, here and below.
inline void convert_int8(const uint8_t* codes, int count, uint16_t* out) {
  for (int i = 0; i < count; i += 32) {
    const __m512i words = _mm512_cvtepi8_epi16(load_bytes(codes + i));
    const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_castsi512_si256(words)));
    const __m512 high =
        _mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(_mm512_extracti64x4_epi64(words, 1)));
    _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}

inline __m512i e4m3_to_bf16(__m256i codes) {
  alignas(64) static constexpr uint16_t kSubnormals[32] = {0,      0x3b00, 0x3b80, 0x3bc0,
                                                           0x3c00, 0x3c20, 0x3c40, 0x3c60};
  const __m512i words = _mm512_cvtepu8_epi16(codes);
  const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7f));
  // Bits in place, and the difference of the exponents' offsets.
  __m512i value = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(120 << 7));
  const __mmask32 subnormal = _mm512_cmplt_epu16_mask(magnitude, _mm512_set1_epi16(8));
  value =
      _mm512_mask_permutexvar_epi16(value, subnormal, magnitude, _mm512_load_si512(kSubnormals));
  const __mmask32 nan = _mm512_cmpeq_epi16_mask(magnitude, _mm512_set1_epi16(0x7f));
  value = _mm512_mask_mov_epi16(value, nan, _mm512_set1_epi16(0x7fc0));
  const __m512i sign = _mm512_slli_epi16(_mm512_andnot_si512(_mm512_set1_epi16(0x7f), words), 8);
  return _mm512_or_si512(value, sign);
}

inline void convert_e4m3(const uint8_t* codes, int count, uint16_t* out) {
  for (int i = 0; i < count; i += 32) {
    _mm512_storeu_si512(out + i, e4m3_to_bf16(load_bytes(codes + i)));
  }
}

inline __m512 bf16_to_floats(__m256i bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
}

// Up to 32 scales.
inline void load_block_scales(const uint8_t* e4m3, int count, __m512* scales) {
  const __mmask32 mask = count < 32 ? (__mmask32(1) << count) - 1 : ~__mmask32(0);
  const __m512i halves = e4m3_to_bf16(_mm256_maskz_loadu_epi8(mask, e4m3));
  scales[0] = bf16_to_floats(_mm512_castsi512_si256(halves));
  scales[1] = bf16_to_floats(_mm512_extracti64x4_epi64(halves, 1));
}

// A scale for each 16 codes.
inline void convert_e2m1(const uint8_t* codes, const uint8_t* e4m3, int count, uint16_t* out) {
  alignas(64) static constexpr uint16_t kValues[32] = {
      0,      0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,  // 0 to 6
      0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0,
      0,      0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,  // the next nibble's bit
      0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};
  const __m512i table = _mm512_load_si512(kValues);
  const __m512i high_half = _mm512_set1_epi32(int32_t(0xffff0000));
  __m512 scales[2] = {};  // of the 512 codes at hand
  __m512i two_scales = _mm512_setzero_si512();
  for (int i = 0; i < count; i += 32) {
    if (i % 512 == 0) {
      load_block_scales(e4m3 + i / 16, (count - i) / 16, scales);
      two_scales = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi32(1), 1);
    }
    const __m512 scale = _mm512_permutex2var_ps(scales[0], two_scales, scales[1]);
    two_scales = _mm512_add_epi32(two_scales, _mm512_set1_epi32(2));
    const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(codes + i / 2)));
    const __m512i nibbles = _mm512_or_si512(bytes, _mm512_slli_epi32(bytes, 12));
    const __m512i pairs = _mm512_permutexvar_epi16(nibbles, table);
    const __m512 even = _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16));
    const __m512 odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, high_half));
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(_mm512_mul_ps(even, scale)), 16);
    const __m512i high = _mm512_castps_si512(_mm512_mul_ps(odd, scale));
    _mm512_storeu_si512(out + i, _mm512_or_si512(low, high));  // exact: low halves are zeros
  }
}

}  // namespace

void convert_record_avx512bf16(const KvLayer& layer, KvRecord record, uint16_t* out,
                               float* latent_scale, float* rope_scale) {
  const int latent = layer.latent, rope = layer.width - latent;
  *latent_scale = *rope_scale = 1;
  if (layer.format == KvFormat::kFp8) return convert_e4m3(record.values, layer.width, out);
  if (layer.format == KvFormat::kInt8) {
    *latent_scale = load_scale(record.scales);
    *rope_scale = load_scale(record.scales + 2);
    return convert_int8(record.values, layer.width, out);
  }
  CHECK(layer.format == KvFormat::kNvfp4, "format %d", int(layer.format));
  *rope_scale = load_scale(record.scales);
  const uint8_t* block_scales = record.values + latent / 2;
  convert_e2m1(record.values, block_scales, latent, out);
  convert_int8(block_scales + latent / 16, rope, out + latent);
}

}  // namespace nibble

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#endif
