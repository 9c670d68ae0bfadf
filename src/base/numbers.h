// Number formats <-> float, scalar and exact: the truth that fast conversions are tested against.
//   bf16  sign 1, exponent 8, mantissa 7          f16   1, 5, 10
//   e4m3  1, 4, 3, bias 7, max 448, 0x7f NaN      e2m1  1, 2, 1, values 0 .5 1 1.5 2 3 4 6
// Encoders round to nearest, ties to even; e4m3 and e2m1 saturate.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace nibble {

inline float bf16_to_float(uint16_t bits) {
  return std::bit_cast<float>(uint32_t(bits) << 16);
}

inline uint16_t float_to_bf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return uint16_t((bits >> 16) | 0x40);  // quiet NaN
  return uint16_t((bits + 0x7fffu + ((bits >> 16) & 1)) >> 16);
}

inline float f16_to_float(uint16_t bits) {
  const uint32_t sign = uint32_t(bits & 0x8000) << 16;
  const int exponent = (bits >> 10) & 31;
  const uint32_t mantissa = bits & 1023;
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | mantissa << 13);
  if (exponent == 0) {
    const float magnitude = std::ldexp(float(mantissa), -24);
    return sign ? -magnitude : magnitude;
  }
  return std::bit_cast<float>(sign | uint32_t(exponent + 112) << 23 | mantissa << 13);
}

inline float e4m3_to_float(uint8_t bits) {
  const int exponent = (bits >> 3) & 15;
  const int mantissa = bits & 7;
  if ((bits & 0x7f) == 0x7f) return std::bit_cast<float>(0x7fc00000u);
  const float magnitude = exponent == 0 ? std::ldexp(float(mantissa), -9)
                                        : std::ldexp(float(8 + mantissa), exponent - 10);
  return bits & 0x80 ? -magnitude : magnitude;
}

inline uint8_t float_to_e4m3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  float magnitude = std::fabs(value);
  if (std::isnan(value)) return sign | 0x7f;
  if (magnitude >= 448.0f) return sign | 0x7e;
  if (magnitude < 0x1p-6f) return sign | uint8_t(std::nearbyint(std::ldexp(magnitude, 9)));
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude = m * 2^exponent, m in [.5, 1)
  const int code = int(std::nearbyint(std::ldexp(magnitude, 4 - exponent)));  // [8, 16]
  return sign | uint8_t(((exponent + 6) << 3) + (code - 8));  // code 16 carries into the exponent
}

inline constexpr float kE2M1Values[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};

inline float e2m1_to_float(uint8_t code) {
  const float magnitude = kE2M1Values[code & 7];
  return code & 8 ? -magnitude : magnitude;
}

// A negative value that rounds to zero keeps its sign bit (code 8); -0.0f gives code 0.
inline uint8_t float_to_e2m1(float value) {
  constexpr float kBounds[7] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};
  const float magnitude = std::fabs(value);
  int code = 0;
  for (const float bound : kBounds) code += bound < magnitude;
  if (magnitude == 0.75f || magnitude == 1.75f || magnitude == 3.5f) ++code;
  return uint8_t(code | (value < 0 ? 8 : 0));
}

}  // namespace nibble
