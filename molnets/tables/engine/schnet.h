// SchNet [1], its filters read from splines.
//
//     h = A x;      y_i = Σ_j h_j ∘ W(d_ij);      x' = x + U₂ ssp(U₁ y + b₁) + b₂
//     ε = R₂ ssp(R₁ x + c₁) + c₂
//
// [1] Schütt et al., NeurIPS 2017, arXiv:1706.08566.

#pragma once

#include "pass.h"

namespace molnets {

template <class R>
struct SchNet {
    struct Sizes {
        int64_t L, F, M, H, rows;  // blocks, features, filters, readout, rows of a table
    };
    static constexpr bool VECTORS = false;
    Sizes sizes;
    Weights<R> weights;
    std::vector<Dense<R>> A;
    std::vector<Perceptron<R>> update;
    Perceptron<R> readout;
    std::vector<const R*> tables;

    static int64_t group(int64_t) { return Vectors<R, 1>::WIDTH * LANES<R>; }
    static int64_t channels(int64_t) { return 1; }

    explicit SchNet(Sizes s) : sizes(s) {}

    void take_weights(const R* const* tensors, int threads) {
        const Sizes& s = sizes;
        weights.restart(), A.clear(), update.clear();
        for (int64_t n = 0; n < s.L; n++) {
            A.push_back(weights.layer({1, s.M, 1, s.F, false}, tensors));
            update.push_back(weights.perceptron({1, s.F, 1, s.M, true}, {1, s.F, 1, s.F, true},
                                                SHIFTED_SOFTPLUS, tensors));
        }
        readout = weights.perceptron({1, s.H, 1, s.F, true}, {1, 1, 1, s.H, true}, SHIFTED_SOFTPLUS,
                                     tensors);
        weights.pack(threads);
    }
};

template <class R>
class SchNetPass : public Pass<R, SchNet<R>> {
    using Base = Pass<R, SchNet<R>>;
    using Base::begin, Base::end, Base::graph, Base::keep, Base::net, Base::sizes, Base::work;
    using Inner = typename Base::Inner;
    const int64_t N = graph.num_rows, L = sizes.L, F = padded<R>(sizes.F), M = padded<R>(sizes.M),
                  H = padded<R>(sizes.H);
    std::vector<Quantity<R>> x, h, y;
    std::vector<Inner> update;
    Inner readout;
    Quantity<R> energy;

    Convolution<R, Vectors<R, 1>> convolution(int64_t n) const {
        return {graph, net.tables[n], M, sizes.rows, {h[n]}, {y[n]}, pull, rate};
    }

public:
    R *pull = nullptr, *rate = nullptr;

    SchNetPass(const SchNet<R>& net, Work<R>& work, int threads, bool keep)
        : Base(net, work, threads, keep) {
        work.lay_out([&] { plan(); });
    }

private:
    void plan() {
        x.clear(), h.clear(), y.clear(), update.clear();
        for (int64_t n = 0; n <= L; n++)
            x.push_back(keep || n == 0 ? work.quantity(N, F, keep) : x[0]);
        for (int64_t n = 0; n < L; n++) {
            bool own = keep || n == 0;
            h.push_back(own ? work.quantity(N, M, keep) : h[0]);
            y.push_back(own ? work.quantity(N, M, keep) : y[0]);
            if (!own) h[n].x[0] = work.take(N * M);  // of all blocks, for the way back
            if (!own)
                y[n].g[0] = n == 1 ? work.take(N * M) : y[n - 2].g[0];  // of this one and the next
            update.push_back(this->inner(F));
        }
        readout = this->inner(H), energy = work.quantity(N, LANES<R>, keep);
        pull = work.take(graph.num_edges), rate = keep ? work.take(graph.num_edges) : nullptr;
    }

    template <Mode MODE>
    void forward(int64_t n, int64_t part) {
        auto conv = convolution(n);
        std::fill(y[n].x[MODE] + begin(part) * M, y[n].x[MODE] + end(part) * M, R(0));
        Base::by_rows(begin(part), end(part), [&](int64_t lo, int64_t hi) {
            conv.template forward<MODE>(lo, hi);
            R *from = x[n].x[MODE] + lo * F, *to = x[n + 1].x[MODE] + lo * F;
            if (from != to) std::copy(from, from + (hi - lo) * F, to);
            net.update[n].forward(lo, hi, y[n], this->at_rows(update[n], lo, F), x[n + 1], MODE,
                                  true);
            if (n + 1 < L)
                net.A[n + 1].forward(hi - lo, to, F, h[n + 1].x[MODE] + lo * M, M, MODE);
            else
                read_out<MODE>(lo, hi);
        });
    }

    // To the energies, and back to the sums of the last block.
    template <Mode MODE>
    void read_out(int64_t lo, int64_t hi) {
        Inner at = this->at_rows(readout, lo, H);
        net.readout.forward(lo, hi, x[L], at, energy, MODE, false);
        for (int64_t i = lo; i < hi; i++) {
            R* g = energy.g[MODE] + i * LANES<R>;
            std::fill(g, g + LANES<R>, R(0));
            g[0] = MODE == VALUE ? R(1) : seeds[graph.order[i]];
        }
        net.readout.backward(lo, hi, energy, at, x[L], MODE);
        net.update[L - 1].backward(lo, hi, x[L], this->at_rows(update[L - 1], lo, F), y[L - 1],
                                   MODE);
    }

    template <Mode MODE>
    void backward(int64_t n, int64_t part) {
        auto conv = convolution(n);
        if (n == 0 && !keep) return conv.template backward<MODE, false>(begin(part), end(part));
        std::fill(h[n].g[MODE] + begin(part) * M, h[n].g[MODE] + end(part) * M, R(0));
        Base::by_rows(begin(part), end(part), [&](int64_t lo, int64_t hi) {
            conv.template backward<MODE, true>(lo, hi);
            R *before = x[n].g[MODE] + lo * F, *after = x[n + 1].g[MODE] + lo * F;
            net.A[n].backward(hi - lo, h[n].g[MODE] + lo * M, M, before, F, after);
            if (n > 0)
                net.update[n - 1].backward(lo, hi, x[n], this->at_rows(update[n - 1], lo, F),
                                           y[n - 1], MODE);
        });
    }

    const R* seeds = nullptr;

    void embed(int64_t lo, int64_t hi, const R* embeddings) {
        Base::embed(lo, hi, embeddings, x[0].x[VALUE], F);
        net.A[0].forward(hi - lo, x[0].x[VALUE] + lo * F, F, h[0].x[VALUE] + lo * M, M, VALUE);
    }

    void fetch(int64_t stage) {
        if (stage > L)
            this->exchange(y[2 * L - stage].g[VALUE], M, M);
        else if (stage > 1)
            this->exchange(h[stage - 1].x[VALUE], M, M);
    }

public:
    void values(const R* embeddings, R* energies, R* forces) {
        this->compute(
            energy, pull, energies, forces,
            [&](int64_t lo, int64_t hi) { embed(lo, hi, embeddings); },
            [&](int64_t n, int64_t part) { forward<VALUE>(n, part); },
            [&](int64_t n, int64_t part) { backward<VALUE>(n, part); },
            [&](int64_t stage) { fetch(stage); });
    }

    // ∇J by the weights, the tables and the embeddings; `rate` is filled.
    void gradients(const R* seeds_of_atoms, R* of_weights, R* of_tables, R* of_embeddings) {
        seeds = seeds_of_atoms;
        this->run(2 * L + 1, [&](int64_t stage, int64_t part) {
            int64_t lo = begin(part), hi = end(part);
            if (stage == 0) {
                std::fill(x[0].x[TANGENT] + lo * F, x[0].x[TANGENT] + hi * F, R(0));
                std::fill(h[0].x[TANGENT] + lo * M, h[0].x[TANGENT] + hi * M, R(0));
            } else if (stage <= L) {
                forward<TANGENT>(stage - 1, part);
            } else {
                backward<TANGENT>(2 * L - stage, part);
            }
        });
        std::vector<Sum<R>> sums;
        for (int64_t n = 0; n < L; n++) {
            sums.push_back({h[n], x[n], N});
            sums.push_back({update[n].s, y[n], N});
            sums.push_back({x[n + 1], update[n].a, N});
            this->gradient_of_table(convolution(n), of_tables);
            of_tables += sizes.rows * sizes.M;
        }
        sums.push_back({readout.s, x[L], N});
        sums.push_back({energy, readout.a, N});
        gradients_of_weights(net.weights, sums, this->threads, true, of_weights);
        this->give_embeddings(x[0].g[TANGENT], F, of_embeddings);
    }
};

}  // namespace molnets
