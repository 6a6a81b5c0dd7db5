// PaiNN [1], its filters read from splines; W₀, W₁, W₂ are those of scalars, directions and
// vectors.
//
//     a = φ(s);         s' = s + Σ_j a_j[0] W₀;      v' = v + Σ_j a_j[1] W₁ u_ij + (v_j ∘ a_j[2])
//     W₂ q = U v',  w = V v',  n = |w|;      o = a(s', n) s'' = s' + o[0] + o[1] ⟨q, w⟩;      v'' =
//     v' + o[2] q
//
// The first block has no v, the last one makes none. [1] Schütt et al., ICML 2021,
// arXiv:2102.03150.

#pragma once

#include "pass.h"

namespace molnets {

template <class R>
struct PaiNN {
    struct Sizes {
        int64_t L, F, M, H, rows;  // blocks, features, again features, readout, rows of a table
    };
    static constexpr bool VECTORS = true;
    Sizes sizes;
    Weights<R> weights;
    struct Block {
        Perceptron<R> phi;
        Dense<R> U, V;
        Perceptron<R> mix;
    };
    std::vector<Block> blocks;
    Perceptron<R> readout;
    std::vector<const R*> tables;

    static int64_t group(int64_t n) {
        return (n ? Vectors<R, 3>::WIDTH : Vectors<R, 2>::WIDTH) * LANES<R>;
    }
    static int64_t channels(int64_t n) { return n ? 3 : 2; }

    explicit PaiNN(Sizes s) : sizes(s) {}

    void take_weights(const R* const* tensors, int threads) {
        const Sizes& s = sizes;
        int64_t F = s.F;
        weights.restart(), blocks.clear();
        for (int64_t n = 0; n < s.L; n++) {
            Block b;
            b.phi =
                weights.perceptron({1, F, 1, F, true}, {channels(n), F, 1, F, true}, SILU, tensors);
            b.U = weights.layer({1, F, 1, F, false}, tensors);
            b.V = weights.layer({1, F, 1, F, false}, tensors);
            b.mix = weights.perceptron({1, F, 2, F, true}, {n + 1 < s.L ? 3 : 2, F, 1, F, true},
                                       SILU, tensors);
            blocks.push_back(b);
        }
        readout = weights.perceptron({1, s.H, 1, F, true}, {1, 1, 1, s.H, true}, SILU, tensors);
        weights.pack(threads);
    }
};

template <class R>
class PaiNNPass : public Pass<R, PaiNN<R>> {
    using Base = Pass<R, PaiNN<R>>;
    using Base::begin, Base::end, Base::graph, Base::keep, Base::net, Base::sizes, Base::work;
    using Inner = typename Base::Inner;
    const int64_t N = graph.num_rows, L = sizes.L, F = padded<R>(sizes.F), H = padded<R>(sizes.H);
    struct State {
        Quantity<R> s, v;          // before the block: (F), (3 F)
        Quantity<R> a, t;          // sent: a (channels F), t = v ∘ a[2] (3 F)
        Quantity<R> sn, v1, q, w;  // s' and n in one row, (2 F); v', q, w (3 F)
        Quantity<R> o;             // (2 or 3 F)
        Inner phi, mix;
    };
    std::vector<State> states;
    Quantity<R> s_end, energy;
    Inner readout;
    const R* seeds = nullptr;

    template <int CHANNELS>
    Convolution<R, Vectors<R, CHANNELS>> convolution(int64_t n) const {
        const State& at = states[n];
        return {graph, net.tables[n], F, sizes.rows, {at.a, at.t}, {at.sn, at.v1}, pull, rate};
    }
    bool last(int64_t n) const { return n + 1 == L; }
    const Quantity<R>& s_after(int64_t n) const { return last(n) ? s_end : states[n + 1].s; }

public:
    R *pull = nullptr, *rate = nullptr;

    PaiNNPass(const PaiNN<R>& net, Work<R>& work, int threads, bool keep)
        : Base(net, work, threads, keep) {
        work.lay_out([&] { plan(); });
    }

private:
    // Without a way back from a loss, blocks share what none needs of another: gradients, of which
    // neighbours read those of s' and v' while the next are written, and s and v' themselves.
    // What is shared has rows of one width: parts are not all in the same block.
    void plan() {
        states.assign(L, {});
        R *s[2] = {}, *v1 = nullptr, *g_v = nullptr, *g_sent[2] = {}, *g_received[2][2] = {},
          *g_rest[4] = {};
        auto make = [&](int64_t width, R** x, R** g) {
            if (keep) return work.quantity(N, width, true);
            Quantity<R> q;
            q.stride = width;
            R *own = nullptr, **of[2] = {x ? x : &own, g};
            for (R** one : of)
                if (one && !*one) *one = work.take(N * (one == &own ? width : 3 * F));
            q.x[VALUE] = *of[0], q.g[VALUE] = g ? *g : nullptr;
            return q;
        };
        for (int64_t n = 0; n < L; n++) {
            State& at = states[n];
            at.s = make(F, &s[0], &s[1]);
            if (n) at.v = make(3 * F, nullptr, &g_v), at.t = make(3 * F, nullptr, &g_sent[0]);
            at.a = make((n ? 3 : 2) * F, nullptr, &g_sent[1]), at.phi = this->inner(F);
            at.sn = make(2 * F, nullptr, &g_received[0][n % 2]),
            at.v1 = make(3 * F, &v1, &g_received[1][n % 2]);
            at.q = make(3 * F, nullptr, &g_rest[0]), at.w = make(3 * F, nullptr, &g_rest[1]);
            at.o = make((last(n) ? 2 : 3) * F, nullptr, &g_rest[last(n) ? 3 : 2]),
            at.mix = this->inner(F);
        }
        s_end = make(F, &s[0], &s[1]), energy = work.quantity(N, LANES<R>, keep),
        readout = this->inner(H);
        pull = work.take(4 * graph.num_edges),
        rate = keep ? work.take(4 * graph.num_edges) : nullptr;
    }

    // What the atoms lo to hi send in block n.
    template <Mode MODE>
    void send(int64_t n, int64_t lo, int64_t hi) {
        using A = Arithmetic<R, MODE>;
        const State& at = states[n];
        net.blocks[n].phi.forward(lo, hi, at.s, this->at_rows(at.phi, lo, F), at.a, MODE, false);
        for (int64_t i = lo; n && i < hi; i++)
            for (int64_t f = 0; f < F; f += LANES<R>)
                for (int64_t k = 0; k < 3; k++) {
                    int64_t m = i * 3 * F + k * F + f;
                    A::put(at.t.x, m,
                           A::get(at.v.x, m) * A::get(at.a.x, i * at.a.stride + 2 * F + f));
                }
    }

    template <Mode MODE>
    void forward(int64_t n, int64_t part) {
        const State& at = states[n];
        for (int64_t i = begin(part); i < end(part); i++) {
            std::copy(at.s.x[MODE] + i * F, at.s.x[MODE] + (i + 1) * F, at.sn.x[MODE] + i * 2 * F);
            R* v1 = at.v1.x[MODE] + i * 3 * F;
            if (n)
                std::copy(at.v.x[MODE] + i * 3 * F, at.v.x[MODE] + (i + 1) * 3 * F, v1);
            else
                std::fill(v1, v1 + 3 * F, R(0));
        }
        Base::by_rows(begin(part), end(part), [&](int64_t lo, int64_t hi) {
            if (n)
                convolution<3>(n).template forward<MODE>(lo, hi);
            else
                convolution<2>(n).template forward<MODE>(lo, hi);
            update<MODE>(n, lo, hi);
            if (!last(n))
                send<MODE>(n + 1, lo, hi);
            else
                read_out<MODE>(lo, hi);
        });
    }

    template <Mode MODE>
    void update(int64_t n, int64_t lo, int64_t hi) {
        using A = Arithmetic<R, MODE>;
        const State& at = states[n];
        const auto& block = net.blocks[n];
        int64_t three = 3 * (hi - lo), from = 3 * lo * F;
        block.U.forward(three, at.v1.x[MODE] + from, F, at.q.x[MODE] + from, F, MODE);
        block.V.forward(three, at.v1.x[MODE] + from, F, at.w.x[MODE] + from, F, MODE);
        for (int64_t i = lo; i < hi; i++)
            for (int64_t f = 0; f < F; f += LANES<R>) {
                auto square = A::tiny();
                for (int64_t k = 0; k < 3; k++) {
                    auto w = A::get(at.w.x, i * 3 * F + k * F + f);
                    square = square + w * w;
                }
                A::put(at.sn.x, i * 2 * F + F + f, root(square));
            }
        block.mix.forward(lo, hi, at.sn, this->at_rows(at.mix, lo, F), at.o, MODE, false);
        for (int64_t i = lo; i < hi; i++)
            for (int64_t f = 0; f < F; f += LANES<R>) {
                int64_t o = i * at.o.stride + f, v = i * 3 * F + f;
                auto dot = A::get(at.q.x, v) * A::get(at.w.x, v);
                for (int64_t k = 1; k < 3; k++)
                    dot = dot + A::get(at.q.x, v + k * F) * A::get(at.w.x, v + k * F);
                A::put(s_after(n).x, i * F + f,
                       A::get(at.sn.x, i * 2 * F + f) + A::get(at.o.x, o) +
                           A::get(at.o.x, o + F) * dot);
                for (int64_t k = 0; !last(n) && k < 3; k++)
                    A::put(states[n + 1].v.x, v + k * F,
                           A::get(at.v1.x, v + k * F) +
                               A::get(at.o.x, o + 2 * F) * A::get(at.q.x, v + k * F));
            }
    }

    template <Mode MODE>
    void read_out(int64_t lo, int64_t hi) {
        Inner at = this->at_rows(readout, lo, H);
        net.readout.forward(lo, hi, s_end, at, energy, MODE, false);
        for (int64_t i = lo; i < hi; i++) {
            R* g = energy.g[MODE] + i * LANES<R>;
            std::fill(g, g + LANES<R>, R(0));
            g[0] = MODE == VALUE ? R(1) : seeds[graph.order[i]];
        }
        net.readout.backward(lo, hi, energy, at, s_end, MODE);
        update_back<MODE>(L - 1, lo, hi);
    }

    // From the gradients of s'' and v'' to those of s' and v'.
    template <Mode MODE>
    void update_back(int64_t n, int64_t lo, int64_t hi) {
        using A = Arithmetic<R, MODE>;
        const State& at = states[n];
        const auto& block = net.blocks[n];
        for (int64_t i = lo; i < hi; i++)
            for (int64_t f = 0; f < F; f += LANES<R>) {
                int64_t o = i * at.o.stride + f, v = i * 3 * F + f;
                auto g_s = A::get(s_after(n).g, i * F + f), product = g_s * A::get(at.o.x, o + F);
                auto dot = A::get(at.q.x, v) * A::get(at.w.x, v);
                for (int64_t k = 1; k < 3; k++)
                    dot = dot + A::get(at.q.x, v + k * F) * A::get(at.w.x, v + k * F);
                A::put(at.o.g, o, g_s), A::put(at.o.g, o + F, g_s * dot);
                typename A::T scale{};
                for (int64_t k = 0; k < 3; k++) {
                    auto q = A::get(at.q.x, v + k * F), w = A::get(at.w.x, v + k * F),
                         g_q = product * w;
                    if (!last(n)) {
                        auto g_v = A::get(states[n + 1].v.g, v + k * F);
                        scale = scale + g_v * q, g_q = g_q + g_v * A::get(at.o.x, o + 2 * F);
                    }
                    A::put(at.q.g, v + k * F, g_q), A::put(at.w.g, v + k * F, product * q);
                }
                if (!last(n)) A::put(at.o.g, o + 2 * F, scale);
            }
        block.mix.backward(lo, hi, at.o, this->at_rows(at.mix, lo, F), at.sn, MODE);
        for (int64_t i = lo; i < hi; i++)
            for (int64_t f = 0; f < F; f += LANES<R>) {
                int64_t sn = i * 2 * F + f, v = i * 3 * F + f;
                auto along = A::get(at.sn.g, sn + F) / A::get(at.sn.x, sn + F);
                A::put(at.sn.g, sn, A::get(at.sn.g, sn) + A::get(s_after(n).g, i * F + f));
                for (int64_t k = 0; k < 3; k++)
                    A::put(at.w.g, v + k * F,
                           A::get(at.w.g, v + k * F) + along * A::get(at.w.x, v + k * F));
            }
        int64_t three = 3 * (hi - lo), from = 3 * lo * F;
        R* g_v1 = at.v1.g[MODE] + from;
        block.U.backward(three, at.q.g[MODE] + from, F, g_v1, F,
                         last(n) ? nullptr : states[n + 1].v.g[MODE] + from);
        block.V.backward(three, at.w.g[MODE] + from, F, g_v1, F, g_v1);
    }

    template <Mode MODE>
    void backward(int64_t n, int64_t part) {
        const State& at = states[n];
        if (n == 0 && !keep)
            return convolution<2>(n).template backward<MODE, false>(begin(part), end(part));
        std::fill(at.a.g[MODE] + begin(part) * at.a.stride, at.a.g[MODE] + end(part) * at.a.stride,
                  R(0));
        if (n)
            std::fill(at.t.g[MODE] + begin(part) * 3 * F, at.t.g[MODE] + end(part) * 3 * F, R(0));
        Base::by_rows(begin(part), end(part), [&](int64_t lo, int64_t hi) {
            if (n)
                convolution<3>(n).template backward<MODE, true>(lo, hi);
            else
                convolution<2>(n).template backward<MODE, true>(lo, hi);
            send_back<MODE>(n, lo, hi);
            if (n) update_back<MODE>(n - 1, lo, hi);
        });
    }

    // From the gradients of what was sent, and of s' and v', to those of s and v.
    template <Mode MODE>
    void send_back(int64_t n, int64_t lo, int64_t hi) {
        using A = Arithmetic<R, MODE>;
        const State& at = states[n];
        for (int64_t i = lo; n && i < hi; i++)
            for (int64_t f = 0; f < F; f += LANES<R>) {
                int64_t a = i * at.a.stride + 2 * F + f;
                auto gate = A::get(at.a.x, a);
                typename A::T g_gate{};
                for (int64_t k = 0; k < 3; k++) {
                    int64_t m = i * 3 * F + k * F + f;
                    auto g_t = A::get(at.t.g, m);
                    g_gate = g_gate + g_t * A::get(at.v.x, m);
                    A::put(at.v.g, m, A::get(at.v1.g, m) + g_t * gate);
                }
                A::put(at.a.g, a, g_gate);
            }
        net.blocks[n].phi.backward(lo, hi, at.a, this->at_rows(at.phi, lo, F), at.s, MODE);
        for (int64_t i = lo; i < hi; i++)
            for (int64_t f = 0; f < F; f += LANES<R>) {
                R* g = at.s.g[MODE] + i * F + f;
                store(g, load(g) + load(at.sn.g[MODE] + i * 2 * F + f));
            }
    }

    void embed(int64_t begin, int64_t end, const R* embeddings) {
        Base::embed(begin, end, embeddings, states[0].s.x[VALUE], F);
        Base::by_rows(begin, end, [&](int64_t lo, int64_t hi) { send<VALUE>(0, lo, hi); });
    }

    void fetch(int64_t stage) {
        if (stage > L) {
            const State& at = states[2 * L - stage];
            this->exchange(at.sn.g[VALUE], at.sn.stride, F);
            this->exchange(at.v1.g[VALUE], 3 * F, 3 * F);
        } else if (stage > 1) {
            const State& at = states[stage - 1];
            this->exchange(at.a.x[VALUE], at.a.stride, 2 * F);
            this->exchange(at.t.x[VALUE], 3 * F, 3 * F);
        }
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
                std::fill(states[0].s.x[TANGENT] + lo * F, states[0].s.x[TANGENT] + hi * F, R(0));
                Base::by_rows(lo, hi,
                              [&](int64_t from, int64_t to) { send<TANGENT>(0, from, to); });
            } else if (stage <= L) {
                forward<TANGENT>(stage - 1, part);
            } else {
                backward<TANGENT>(2 * L - stage, part);
            }
        });
        std::vector<Sum<R>> sums;
        for (int64_t n = 0; n < L; n++) {
            const State& at = states[n];
            auto rows = [&](Quantity<R> q) {
                return q.stride = F, q;
            };  // of vectors, one for each axis
            sums.push_back({at.phi.s, at.s, N}), sums.push_back({at.a, at.phi.a, N});
            sums.push_back({rows(at.q), rows(at.v1), 3 * N}),
                sums.push_back({rows(at.w), rows(at.v1), 3 * N});
            sums.push_back({at.mix.s, at.sn, N}), sums.push_back({at.o, at.mix.a, N});
            if (n)
                this->gradient_of_table(convolution<3>(n), of_tables);
            else
                this->gradient_of_table(convolution<2>(n), of_tables);
            of_tables += sizes.rows * (n ? 3 : 2) * sizes.F;
        }
        sums.push_back({readout.s, s_end, N}), sums.push_back({energy, readout.a, N});
        gradients_of_weights(net.weights, sums, this->threads, true, of_weights);
        this->give_embeddings(states[0].s.g[TANGENT], F, of_embeddings);
    }
};

}  // namespace molnets
