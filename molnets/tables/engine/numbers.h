// Rows of numbers, as wide as the widest registers, and the functions of one number that networks
// need.
//
// Vec<R> holds LANES<R> numbers. On narrower machines the compiler splits it. NaN comes out as NaN:
// no comparison below turns it into a number, and the compiler is not allowed to assume there is
// none.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace molnets {

template <class R>
struct Register;
template <>
struct Register<float> {
    typedef float Vec __attribute__((vector_size(64)));
    typedef float Anywhere __attribute__((vector_size(64), aligned(4)));  // in memory
    typedef int32_t Whole __attribute__((vector_size(64)));
    static constexpr int MANTISSA = 23, BIAS = 127, EXP_TERMS = 7, LOG_TERMS = 7;
    static constexpr float LOWEST = -87, LOG2_HIGH = 0.693359375f, LOG2_LOW = -2.12194440e-4f;
};
template <>
struct Register<double> {
    typedef double Vec __attribute__((vector_size(64)));
    typedef double Anywhere __attribute__((vector_size(64), aligned(8)));
    typedef int64_t Whole __attribute__((vector_size(64)));
    static constexpr int MANTISSA = 52, BIAS = 1023, EXP_TERMS = 13, LOG_TERMS = 16;
    static constexpr double LOWEST = -708, LOG2_HIGH = 0.6931471803691238,
                            LOG2_LOW = 1.9082149292705877e-10;
};
template <class R>
using Vec = typename Register<R>::Vec;
template <class R>
constexpr int LANES = 64 / sizeof(R);

template <class R>
inline Vec<R> load(const R* at) {
    return *reinterpret_cast<const typename Register<R>::Anywhere*>(at);
}
template <class R>
inline void store(R* at, Vec<R> x) {
    *reinterpret_cast<typename Register<R>::Anywhere*>(at) = x;
}

// Half and half again: in turn, each addition would wait for the one before.
template <class R>
inline R sum(Vec<R> x) {
#if defined(__clang__)
    R total = 0;
    for (int l = 0; l < LANES<R>; l++) total += x[l];
    return total;
#else
    typename Register<R>::Whole lane;
    for (int l = 0; l < LANES<R>; l++) lane[l] = l;
    for (int width = LANES<R> / 2; width > 0; width /= 2) x += __builtin_shuffle(x, lane ^ width);
    return x[0];
#endif
}

inline Vec<float> root(Vec<float> x) {
    for (int l = 0; l < LANES<float>; l++) x[l] = std::sqrt(x[l]);
    return x;
}
inline Vec<double> root(Vec<double> x) {
    for (int l = 0; l < LANES<double>; l++) x[l] = std::sqrt(x[l]);
    return x;
}

// exp(x) for x <= 0: 2^n exp(r) with |r| <= log(2) / 2.
template <class R>
inline Vec<R> exp_of(Vec<R> x) {
    using T = Register<R>;
    x = x < T::LOWEST ? Vec<R>{} + T::LOWEST : x;  // not so for NaN
    auto n = __builtin_convertvector(x * R(1.4426950408889634) - R(0.5), typename T::Whole);
    Vec<R> whole = __builtin_convertvector(n, Vec<R>);
    Vec<R> r = (x - whole * T::LOG2_HIGH) - whole * T::LOG2_LOW;
    Vec<R> p = Vec<R>{} + R(1);
    for (int k = T::EXP_TERMS; k > 0; k--) p = R(1) + r * p * (R(1) / R(k));
    n = (n + T::BIAS) << T::MANTISSA;
    Vec<R> power;
    std::memcpy(&power, &n, sizeof n);
    return p * power;
}

// log(1 + u) for 0 <= u <= 1: 2 artanh(u / (2 + u)).
template <class R>
inline Vec<R> log1p_of(Vec<R> u) {
    Vec<R> t = u / (R(2) + u), q = t * t, p = {};
    for (int k = Register<R>::LOG_TERMS; k >= 0; k--) p = R(1) / R(2 * k + 1) + q * p;
    return R(2) * t * p;
}

enum Activation { SHIFTED_SOFTPLUS, SILU };

// What an activation is at a point, with its first and second derivative.
template <class R>
struct Curve {
    Vec<R> value, slope, bend;
};

template <class R>
inline Curve<R> activate(Vec<R> s, Activation kind) {
    Vec<R> zero = {}, u = exp_of<R>(s < 0 ? s : -s), p = R(1) / (R(1) + u);
    Vec<R> sigmoid = s < 0 ? u * p : p, rest = s < 0 ? p : u * p;  // their sum is 1
    if (kind == SILU)
        return {s * sigmoid, sigmoid * (R(1) + s * rest),
                sigmoid * rest * (R(2) + s * (rest - sigmoid))};
    const R log2 = 0.69314718055994531f;  // in single precision, as in PyG's shifted softplus
    return {(s < 0 ? zero : s) + log1p_of<R>(u) - log2, sigmoid, sigmoid * rest};
}

// A number and its tangent.
template <class V>
struct Dual {
    V x, d;
};
template <class V>
inline Dual<V> operator+(Dual<V> a, Dual<V> b) {
    return {a.x + b.x, a.d + b.d};
}
template <class V>
inline Dual<V> operator-(Dual<V> a, Dual<V> b) {
    return {a.x - b.x, a.d - b.d};
}
template <class V>
inline Dual<V> operator*(Dual<V> a, Dual<V> b) {
    return {a.x * b.x, a.d * b.x + a.x * b.d};
}
template <class V>
inline Dual<V> operator/(Dual<V> a, Dual<V> b) {
    V x = a.x / b.x;
    return {x, (a.d - x * b.d) / b.x};
}
template <class V, class R>
inline Dual<V> operator*(Dual<V> a, R b) {
    return {a.x * b, a.d * b};
}
template <class V, class R>
inline Dual<V> operator*(R a, Dual<V> b) {
    return b * a;
}
template <class V, class R>
inline Dual<V> operator+(Dual<V> a, R b) {
    return {a.x + b, a.d};
}
template <class V, class R>
inline Dual<V> operator/(R a, Dual<V> b) {
    V x = a / b.x;
    return {x, -x * b.d / b.x};
}
template <class V>
inline Dual<V> root(Dual<V> a) {
    V x = root(a.x);
    return {x, a.d / (x + x)};
}

}  // namespace molnets
