// Dense layers on rows of atoms, forward and back, of numbers and of their tangents.
//
// A quantity of the network is a matrix of duals x + ε ẋ, and of gradients G + ε P, where G = ∂E/∂x
// and P = ∂J/∂x for J = Σ_i s_i ε_i + dE/dε: see pass.h. A linear layer does the same to either:
// MODE says to which. Widths are multiples of LANES; what is beyond a layer's own size is 0.

#pragma once

#include <algorithm>

#include "numbers.h"

namespace molnets {

constexpr int64_t MANY_ROWS = 256;  // of which a weight's gradient is summed at a time
constexpr double TINY = 1e-8;       // under the root of a vector's length, as in PaiNN

enum Mode { VALUE, TANGENT };

// Rows of a quantity: those of atom i begin at i * stride.
template <class R>
struct Quantity {
    R* x[2] = {nullptr, nullptr};
    R* g[2] = {nullptr, nullptr};
    int64_t stride = 0;
};

// A lane of a quantity in arithmetic: its number, or number and tangent, of which the tangent is
// written.
template <class R, Mode MODE>
struct Arithmetic;
template <class R>
struct Arithmetic<R, VALUE> {
    using T = Vec<R>;
    static T get(R* const (&of)[2], int64_t at) { return load(of[VALUE] + at); }
    static void put(R* const (&of)[2], int64_t at, T x) { store(of[VALUE] + at, x); }
    static T tiny() { return Vec<R>{} + R(TINY); }
};
template <class R>
struct Arithmetic<R, TANGENT> {
    using T = Dual<Vec<R>>;
    static T get(R* const (&of)[2], int64_t at) {
        return {load(of[VALUE] + at), load(of[TANGENT] + at)};
    }
    static void put(R* const (&of)[2], int64_t at, T x) { store(of[TANGENT] + at, x.d); }
    static T tiny() { return {Vec<R>{} + R(TINY), Vec<R>{}}; }
};

// c = start + a b, a sum over `depth`; a[r, k] is at r a_row + k a_k, rows of the others follow
// each other by so many numbers. `start` may be c, one row for all (start_row 0), or null for
// zeros.
template <class R>
struct Product {
    const R* a;
    int64_t a_row, a_k, depth;
    const R* b;
    int64_t b_row;
    const R* start;
    int64_t start_row;
    R* c;
    int64_t c_row;

    Product from(int64_t row, int64_t column) const {
        const R* begin = start ? start + row * start_row + column : nullptr;
        return {a + row * a_row,          a_row, a_k, depth, b + column, b_row, begin, start_row,
                c + row * c_row + column, c_row};
    }
};

// ROWS by COLS lanes of it: the sums stay in registers.
template <class R, int ROWS, int COLS>
inline void tile(const Product<R>& p) {
    constexpr int W = LANES<R>;
    Vec<R> sums[ROWS][COLS];
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < COLS; n++)
            sums[r][n] = p.start ? load(p.start + r * p.start_row + n * W) : Vec<R>{};
    for (int64_t k = 0; k < p.depth; k++) {
        Vec<R> row[COLS];
        for (int n = 0; n < COLS; n++) row[n] = load(p.b + k * p.b_row + n * W);
        for (int r = 0; r < ROWS; r++) {
            R factor = p.a[r * p.a_row + k * p.a_k];
            for (int n = 0; n < COLS; n++) sums[r][n] += factor * row[n];
        }
    }
    for (int r = 0; r < ROWS; r++)
        for (int n = 0; n < COLS; n++) store(p.c + r * p.c_row + n * W, sums[r][n]);
}

// COLS lanes from a column on, of any number of rows.
template <class R, int COLS>
inline void columns(const Product<R>& p, int64_t rows, int64_t column) {
    int64_t r = 0;
    while (r + 6 <= rows) tile<R, 6, COLS>(p.from(r, column)), r += 6;
    if (r + 4 <= rows) tile<R, 4, COLS>(p.from(r, column)), r += 4;
    if (r + 2 <= rows) tile<R, 2, COLS>(p.from(r, column)), r += 2;
    if (r < rows) tile<R, 1, COLS>(p.from(r, column));
}

template <class R>
inline void multiply(const Product<R>& p, int64_t rows, int64_t width) {
#if defined(__AVX512F__)
    constexpr int MOST = 4;
#else
    constexpr int MOST = 1;  // a Vec takes several registers
#endif
    constexpr int W = LANES<R>;
    int64_t n = 0;
    for (; n + MOST * W <= width; n += MOST * W) columns<R, MOST>(p, rows, n);
    for (; n + 2 * W <= width && MOST > 2; n += 2 * W) columns<R, 2>(p, rows, n);
    for (; n < width; n += W) columns<R, 1>(p, rows, n);
}

// y = W x + b, with W (out, in) stored both ways.
template <class R>
struct Dense {
    int64_t in = 0, out = 0;
    const R *W = nullptr, *Wt = nullptr, *b = nullptr;  // b: null for none

    // y = W x + b of rows, or what `start` is in place of b.
    void forward(int64_t rows, const R* x, int64_t x_row, R* y, int64_t y_row, Mode mode,
                 const R* start = nullptr) const {
        bool bias = !start && b && mode == VALUE;
        multiply<R>({x, x_row, 1, in, Wt, out, bias ? b : start, bias ? 0 : y_row, y, y_row}, rows,
                    out);
    }
    // g_x = Wᵀ g_y, added to `start`.
    void backward(int64_t rows, const R* g_y, int64_t y_row, R* g_x, int64_t x_row,
                  const R* start = nullptr) const {
        multiply<R>({g_y, y_row, 1, out, W, in, start, x_row, g_x, x_row}, rows, in);
    }
    // Rows lo to hi of ∂J/∂W = Σ P_y xᵀ + G_y ẋᵀ, (out, in), and of ∂J/∂b = Σ P_y.
    void gradient(int64_t lo, int64_t hi, int64_t rows, const Quantity<R>& y, const Quantity<R>& x,
                  bool tangents, R* g_W, R* g_b) const {
        R* own = g_W + lo * in;
        for (int64_t i = 0; i < rows; i += MANY_ROWS)
            for (int both = 0; both < 1 + tangents; both++) {
                const R *of_y = y.g[1 - both] + i * y.stride + lo, *of_x = x.x[both] + i * x.stride;
                multiply<R>({of_y, 1, y.stride, std::min(MANY_ROWS, rows - i), of_x, x.stride,
                             i + both ? own : nullptr, in, own, in},
                            hi - lo, in);
            }
        if (!b) return;
        for (int64_t o = lo; o < hi; o++) g_b[o] = 0;
        for (int64_t i = 0; i < rows; i++)
            for (int64_t o = lo; o < hi; o++) g_b[o] += y.g[TANGENT][i * y.stride + o];
    }
};

// y = W₂ act(W₁ x + b₁) + b₂, and what its way back needs.
template <class R>
struct Perceptron {
    Dense<R> first, second;
    Activation kind = SILU;

    // What lies between its two layers: s, act(s), and the activation's derivatives.
    struct Inner {
        Quantity<R> s, a;
        R *slope = nullptr, *bend = nullptr;  // bend: null if no tangents will follow
    };

    void forward(int64_t lo, int64_t hi, const Quantity<R>& x, const Inner& at,
                 const Quantity<R>& y, Mode mode, bool add) const {
        int64_t width = first.out, rows = hi - lo;
        R *s = at.s.x[mode] + lo * width, *a = at.a.x[mode] + lo * width;
        R *slope = at.slope + lo * width, *out = y.x[mode] + lo * y.stride;
        first.forward(rows, x.x[mode] + lo * x.stride, x.stride, s, width, mode);
        for (int64_t n = 0; n < rows * width; n += LANES<R>) {
            if (mode == TANGENT) {
                store(a + n, load(s + n) * load(slope + n));
                continue;
            }
            Curve<R> at_s = activate<R>(load(s + n), kind);
            store(a + n, at_s.value), store(slope + n, at_s.slope);
            if (at.bend) store(at.bend + lo * width + n, at_s.bend);
        }
        if (add && mode == VALUE) add_bias(rows, out, y.stride);
        second.forward(rows, a, width, out, y.stride, mode, add ? out : nullptr);
    }

    // From the gradients of y to those of x, which are added to those that `start` points to.
    void backward(int64_t lo, int64_t hi, const Quantity<R>& y, const Inner& at,
                  const Quantity<R>& x, Mode mode, const R* start = nullptr) const {
        int64_t width = first.out, rows = hi - lo;
        R *g_s = at.s.g[mode] + lo * width, *g_a = at.a.g[mode] + lo * width;
        const R* slope = at.slope + lo * width;
        second.backward(rows, y.g[mode] + lo * y.stride, y.stride, g_a, width);
        for (int64_t n = 0; n < rows * width; n += LANES<R>) {
            Vec<R> g = load(g_a + n) * load(slope + n);
            if (mode == TANGENT)
                g += load(at.bend + lo * width + n) * load(at.s.x[TANGENT] + lo * width + n) *
                     load(at.a.g[VALUE] + lo * width + n);
            store(g_s + n, g);
        }
        first.backward(rows, g_s, width, x.g[mode] + lo * x.stride, x.stride, start);
    }

private:
    void add_bias(int64_t rows, R* y, int64_t stride) const {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t o = 0; o < second.out; o += LANES<R>)
                store(y + i * stride + o, load(y + i * stride + o) + load(second.b + o));
    }
};

}  // namespace molnets
