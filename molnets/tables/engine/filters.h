// From the weights of filter networks to the coefficients of splines, and back.
//
// A filter is asked at n knots: SchNet's is W₂ ssp(W₁ e + b₁) + b₂, others' a matrix times (e, 1),
// each times the cutoff function there. The coefficients are c_j = Σ_m a_m W_{j + m}, see
// splines.py.

#pragma once

#include "pass.h"

namespace molnets {

template <class R>
struct Filters {
    bool is_perceptron;
    int64_t blocks, num_gaussians, M, n, taps;
    std::vector<int64_t> channels;  // of each block
    const R *e, *fade, *a;          // (n, Gaussians), (n), (2 taps + 1)
    Weights<R> weights{};
    std::vector<Perceptron<R>> perceptrons{};
    std::vector<Dense<R>> layers{};
    Work<R> work{};

    int64_t num_blocks() const { return is_perceptron ? perceptrons.size() : layers.size(); }
    int64_t width(int64_t block) const { return channels[block] * padded<R>(M); }
    int64_t inputs() const { return padded<R>(num_gaussians + !is_perceptron); }

    void take_weights(const R* const* tensors, int threads) {
        weights.restart(), perceptrons.clear(), layers.clear();
        for (int64_t b = 0; b < blocks; b++)
            if (is_perceptron)
                perceptrons.push_back(weights.perceptron(
                    {1, M, 1, num_gaussians, true}, {1, M, 1, M, true}, SHIFTED_SOFTPLUS, tensors));
            else
                layers.push_back(
                    weights.layer({channels[b], M, 1, num_gaussians + 1, false}, tensors));
        weights.pack(threads);
    }

    // What lies between weights and coefficients: the radial functions, the layers, the values.
    struct Between {
        Quantity<R> inside, values;
        typename Perceptron<R>::Inner inner;
    };
    Quantity<R> radial{};
    std::vector<Between> between{};

    void plan() {
        radial = work.quantity(n, inputs(), true);
        between.assign(num_blocks(), {});
        for (int64_t b = 0; b < num_blocks(); b++) {
            Between& at = between[b];
            at.values = work.quantity(n, width(b), true);
            if (!is_perceptron) continue;
            at.inner.s = work.quantity(n, width(b), true),
            at.inner.a = work.quantity(n, width(b), true);
            at.inner.slope = work.take(n * width(b));
        }
    }

    // Call body(block, lo, hi) for pieces of so many rows.
    template <class F>
    void by_rows(int64_t rows, int threads, F body) const {
        int64_t num = (rows + 4 * ROWS - 1) / (4 * ROWS);
        double operations = double(rows) * num_blocks() * width(0) * (inputs() + padded<R>(M));
        Pool::each(num * num_blocks(), Pool::worth(operations, threads), [&](int64_t task) {
            int64_t lo = task % num * 4 * ROWS;
            body(task / num, lo, std::min(lo + 4 * ROWS, rows));
        });
    }

    void forward(int threads, R* out) {
        work.lay_out([&] { plan(); });
        for (int64_t k = 0; k < n; k++) {
            R* row = radial.x[VALUE] + k * inputs();
            std::fill(row, row + inputs(), R(0));
            std::copy(e + k * num_gaussians, e + (k + 1) * num_gaussians, row);
            if (!is_perceptron) row[num_gaussians] = 1;
        }
        by_rows(n, threads, [&](int64_t b, int64_t lo, int64_t hi) {
            Between& at = between[b];
            R* values = at.values.x[VALUE];
            if (is_perceptron)
                perceptrons[b].forward(lo, hi, radial, at.inner, at.values, VALUE, false);
            else
                layers[b].forward(hi - lo, radial.x[VALUE] + lo * inputs(), inputs(),
                                  values + lo * width(b), width(b), VALUE);
            for (int64_t k = lo; k < hi; k++)
                for (int64_t f = 0; f < width(b); f++) values[k * width(b) + f] *= fade[k];
        });
        int64_t rows = n - 2 * taps;
        by_rows(rows, threads, [&](int64_t b, int64_t lo, int64_t hi) {
            const int64_t w = width(b), P = padded<R>(M);
            R* c = scratch<R>(w);
            R* to = out + rows * M * first_channel(b);
            for (int64_t j = lo; j < hi; j++) {
                combine(between[b].values.x[VALUE] + j * w, w, c, 2 * taps + 1, a);
                for (int64_t k = 0; k < channels[b]; k++)
                    std::copy(c + k * P, c + k * P + M, to + (j * channels[b] + k) * M);
            }
        });
    }

    // The gradients by the weights, as the tensors, one after the other; after `forward`.
    void backward(int threads, const R* g, R* out) {
        int64_t rows = n - 2 * taps;
        by_rows(n, threads, [&](int64_t b, int64_t lo, int64_t hi) {
            Between& at = between[b];
            const int64_t w = width(b), P = padded<R>(M);
            const R* from = g + rows * M * first_channel(b);
            for (int64_t k = lo; k < hi; k++) {
                R* g_values = at.values.g[TANGENT] + k * w;
                std::fill(g_values, g_values + w, R(0));
                for (int64_t j = std::max<int64_t>(0, k - 2 * taps); j <= std::min(k, rows - 1);
                     j++) {
                    R factor = a[k - j] * fade[k];
                    for (int64_t c = 0; c < channels[b]; c++)
                        for (int64_t f = 0; f < M; f++)
                            g_values[c * P + f] += factor * from[(j * channels[b] + c) * M + f];
                }
            }
            if (!is_perceptron) return;
            const Perceptron<R>& p = perceptrons[b];  // its values' way back, with P in place of G
            Quantity<R> s = at.inner.s, inner = at.inner.a;
            p.second.backward(hi - lo, at.values.g[TANGENT] + lo * w, w, inner.g[TANGENT] + lo * w,
                              w);
            for (int64_t at_n = lo * w; at_n < hi * w; at_n += LANES<R>)
                store(s.g[TANGENT] + at_n,
                      load(inner.g[TANGENT] + at_n) * load(at.inner.slope + at_n));
        });
        std::vector<Sum<R>> sums;
        for (int64_t b = 0; b < num_blocks(); b++) {
            if (is_perceptron)
                sums.push_back({between[b].inner.s, radial, n}),
                    sums.push_back({between[b].values, between[b].inner.a, n});
            else
                sums.push_back({between[b].values, radial, n});
        }
        gradients_of_weights(weights, sums, threads, false, out);
    }

private:
    int64_t first_channel(int64_t block) const {
        int64_t total = 0;
        for (int64_t b = 0; b < block; b++) total += channels[b];
        return total;
    }
    // c = Σ_m a_m of rows that follow each other.
    static void combine(const R* rows, int64_t width, R* c, int64_t num, const R* a) {
        for (int64_t f = 0; f < width; f += LANES<R>) {
            Vec<R> total = {};
            for (int64_t m = 0; m < num; m++) total += a[m] * load(rows + m * width + f);
            store(c + f, total);
        }
    }
};

}  // namespace molnets
