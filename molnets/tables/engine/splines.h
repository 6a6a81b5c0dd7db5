// Splines of the distance: their weights on an edge, and where their coefficients lie.
//
// Of degree ORDER, with ORDER - 1 continuous derivatives. In terms of B-spline coefficients c and
// their differences D, which keep their digits in single precision,
//
//     W = c[k] + Σ_p w_p D[k + p],      p = 1 … ORDER,      k the knot below the distance.
//
// A table goes by channels, then by groups of columns, each with rows of c and D side by side: what
// an edge reads is one piece of memory.

#pragma once

#include <algorithm>

#include "numbers.h"

namespace molnets {

constexpr int ORDER = 5;

// The weights w_p and their derivatives for LANES edges, from the place t inside their intervals.
template <class R>
struct Basis {
    R w[ORDER][LANES<R>], dw[ORDER][LANES<R>];

    void fill(const R* t_of_edges, R per_length) {
        Vec<R> t = load(t_of_edges), b[ORDER + 1] = {};
        b[0] += R(1);
        raise<1>(t, b);
        for (int p = 0; p < ORDER; p++) store(dw[p], b[p] * per_length);
        step<ORDER>(t, b);
        for (int p = ORDER; p > 0; p--) {
            if (p < ORDER) b[p] += b[p + 1];
            store(w[p - 1], b[p]);
        }
    }
    // From B-splines of degree N - 1 to those of degree N, and so on below ORDER.
    template <int N>
    static void step(Vec<R> t, Vec<R>* b) {
        for (int p = N; p > 0; p--)
            b[p] = ((t + R(N - p)) * b[p - 1] + (R(1 + p) - t) * b[p]) * (R(1) / R(N));
        b[0] = (R(1) - t) * b[0] * (R(1) / R(N));
    }
    template <int N>
    static void raise(Vec<R> t, Vec<R>* b) {
        step<N>(t, b);
        if constexpr (N + 1 < ORDER) raise<N + 1>(t, b);
    }
};

// The columns of M that stay in registers together: a group as long as there are enough, then one
// register's width each.
template <class R>
int64_t group_begin(int64_t f, int64_t M, int64_t group) {
    int64_t begin = f / group * group;
    return begin + group <= M ? begin : f / LANES<R> * LANES<R>;
}
template <class R>
int64_t group_width(int64_t f, int64_t M, int64_t group) {
    return f / group * group + group <= M ? group : LANES<R>;
}
// Where c of a row, channel and column is; D is a group's width further.
template <class R>
int64_t place_in_table(int64_t row, int64_t channel, int64_t f, int64_t M, int64_t rows,
                       int64_t group) {
    int64_t begin = group_begin<R>(f, M, group), width = group_width<R>(f, M, group);
    return 2 * ((channel * M + begin) * rows + row * width) + f - begin;
}

// Call f(row, where c is, the group's width, place in (rows, channels, num)) for num of M columns.
template <class R, class F>
void visit_table(int64_t rows, int64_t channels, int64_t M, int64_t num, int64_t group, F f) {
    for (int64_t c = 0; c < channels; c++)
        for (int64_t begin = 0; begin < num; begin += group_width<R>(begin, M, group)) {
            int64_t width = group_width<R>(begin, M, group), columns = std::min(width, num - begin);
            for (int64_t row = 0; row < rows; row++) {
                int64_t at = place_in_table<R>(row, c, begin, M, rows, group);
                for (int64_t n = 0; n < columns; n++)
                    f(row, at + n, width, (row * channels + c) * num + begin + n);
            }
        }
}

}  // namespace molnets
