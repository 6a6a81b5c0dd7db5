// What TensorNet does to an atom's own matrices: dense layers, norms, and where their numbers are.

#pragma once

#include "pass.h"
#include "tensors.h"

namespace molnets {

// An atom's matrix in the columns from f on, of numbers or of gradients: those of atoms of F
// columns.
template <class R, Mode MODE>
struct Rooms {
    using A = Arithmetic<R, MODE>;
    using Matrix = Nine<typename A::T>;
    int64_t F;

    int64_t place(int k, int64_t i, int64_t f) const {
        return (i * ROWS_OF[PART_OF[k]] + ROW_OF[k]) * F + f;
    }
    Matrix value(const Parts<R>& of, int64_t i, int64_t f) const {
        Matrix x;
        for (int k = 0; k < 9; k++) x.c[k] = A::get(of.part[PART_OF[k]].x, place(k, i, f));
        return x;
    }
    Matrix gradient(const Parts<R>& of, int64_t i, int64_t f) const {
        Matrix g;
        for (int k = 0; k < 9; k++) g.c[k] = A::get(of.part[PART_OF[k]].g, place(k, i, f));
        return g;
    }
    void put(const Parts<R>& of, int64_t i, int64_t f, const Matrix& x) const {
        for (int k = 0; k < 9; k++) A::put(of.part[PART_OF[k]].x, place(k, i, f), x.c[k]);
    }
    void put_gradient(const Parts<R>& of, int64_t i, int64_t f, const Matrix& g) const {
        for (int k = 0; k < 9; k++) A::put(of.part[PART_OF[k]].g, place(k, i, f), g.c[k]);
    }
};

// Dense layers, one for each part, of all its rows.
template <class R>
struct Mix {
    Dense<R> layers[3];

    void forward(int64_t lo, int64_t hi, const Parts<R>& x, const Parts<R>& y, int64_t F,
                 Mode mode) const {
        for (int p = 0; p < 3; p++) {
            const int64_t from = ROWS_OF[p] * lo * F;
            layers[p].forward(ROWS_OF[p] * (hi - lo), x.part[p].x[mode] + from, F,
                              y.part[p].x[mode] + from, F, mode);
        }
    }
    // From the gradients of y to those of x, added to what these are if `add`.
    void backward(int64_t lo, int64_t hi, const Parts<R>& y, const Parts<R>& x, int64_t F,
                  Mode mode, bool add) const {
        for (int p = 0; p < 3; p++) {
            const int64_t from = ROWS_OF[p] * lo * F;
            R* g_x = x.part[p].g[mode] + from;
            layers[p].backward(ROWS_OF[p] * (hi - lo), y.part[p].g[mode] + from, F, g_x, F,
                               add ? g_x : nullptr);
        }
    }
    // What its weights' gradients are sums of, of N atoms.
    static void add_sums(std::vector<Sum<R>>& sums, const Parts<R>& y, const Parts<R>& x, int64_t F,
                         int64_t N) {
        for (int p = 0; p < 3; p++) {
            Quantity<R> of_y = y.part[p], of_x = x.part[p];
            of_y.stride = of_x.stride = F;
            sums.push_back({of_y, of_x, ROWS_OF[p] * N});
        }
    }
};

// (x - mean) / √(variance + EPS) of a row of blocks of F numbers, of which `num` are the network's.
// What pads the blocks is 0 in x and in the gradients of y, and weights of 0 follow it: only of the
// variance must it be kept out.
template <class R, Mode MODE>
struct Norm {
    using A = Arithmetic<R, MODE>;
    using T = typename A::T;
    static constexpr R EPS = R(1e-5);
    const R* mask;  // 1 for the network's numbers of a block, 0 for what pads it
    int64_t F, blocks;
    R num;

    static Vec<R> across(Vec<R> x) { return Vec<R>{} + sum<R>(x); }
    static Dual<Vec<R>> across(Dual<Vec<R>> x) { return {across(x.x), across(x.d)}; }
    template <class F_>
    T mean(F_ of) const {
        T total{};
        for (int64_t f = 0; f < blocks * F; f += LANES<R>) total = total + of(f);
        return across(total) * (R(1) / num);
    }
    struct Row {
        T mean, scale;
    };
    Row row(const Quantity<R>& x, int64_t at) const {
        T middle = mean([&](int64_t f) { return A::get(x.x, at + f); });
        T variance = mean([&](int64_t f) {
            T off = A::get(x.x, at + f) - middle;
            return off * off * load(mask + f % F);
        });
        return {middle, R(1) / root(variance + EPS)};
    }
    T normed(const Quantity<R>& x, const Row& of, int64_t at, int64_t f) const {
        return (A::get(x.x, at + f) - of.mean) * of.scale;
    }
    void forward(const Quantity<R>& x, const Quantity<R>& y, int64_t i) const {
        const int64_t at = i * blocks * F;
        Row of = row(x, at);
        for (int64_t f = 0; f < blocks * F; f += LANES<R>)
            A::put(y.x, at + f, normed(x, of, at, f));
    }
    void backward(const Quantity<R>& x, const Quantity<R>& y, int64_t i) const {
        const int64_t at = i * blocks * F;
        Row of = row(x, at);
        T level = mean([&](int64_t f) { return A::get(y.g, at + f); }),
          along = mean([&](int64_t f) { return A::get(y.g, at + f) * normed(x, of, at, f); });
        for (int64_t f = 0; f < blocks * F; f += LANES<R>) {
            T g = A::get(y.g, at + f) - level - normed(x, of, at, f) * along;
            A::put(x.g, at + f, g * of.scale);
        }
    }
};

}  // namespace molnets
