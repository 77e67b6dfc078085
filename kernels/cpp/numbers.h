// Numbers of 16 and of 8 bits, one by one.
#pragma once

#include <cstdint>
#include <cstring>

namespace bombus {

inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

inline float half(uint16_t bits) {
  // The exponent is moved; subnormals are counted, so that processors that flush them to zero give the same.
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent == 0) {
    const float value = static_cast<float>(fraction) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -value : value;
  }
  if (exponent == 31) return from_bits(sign | 0x7f800000u | (fraction << 13));
  return from_bits(sign | ((exponent + 112) << 23) | (fraction << 13));
}

inline float e4m3(uint8_t code) {
  const uint32_t magnitude = code & 0x7f;
  float value;
  if (magnitude == 0x7f) value = from_bits(0x7fc00000u);
  else if (magnitude < 8) value = static_cast<float>(magnitude) * 0.001953125f;  // 2^-9
  else value = from_bits((magnitude << 20) + (120u << 23));
  return code & 0x80 ? -value : value;
}

// A bfloat16 as a float32.
inline float widened(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }

// The nearest bfloat16, ties to even.
inline uint16_t bfloat16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? bits >> 16 | 0x40 : rounded);
}

}  // namespace bombus
