// TensorNet [1], its filters read from splines; an atom's X, Y, M are matrices: see tensors.h.
//
//     M_i = Σ_j (p_i + q_j) (W_I δ + W_A [u]ₓ + W_S (u uᵀ - δ/3));      X = φ(norm |M|²) ∘ V(M)
//
// first, p and q of the element; then for each block, with b(X) = X / (|X|² + 1),
//
//     Y = V(b(X));      M_i = Σ_j (W_I, W_A, W_S) ∘ Y_j;      D = V'(b(Y M + M Y))
//     X' = b(X) + D + D²;      at last ε = φ(norm(|I|², |A|², |S|²))
//
// V are three dense layers, one for each part. [1] Simeon & De Fabritiis, NeurIPS 2023,
// arXiv:2306.06482.

#pragma once

#include "rooms.h"

namespace molnets {

template <class R>
struct TensorNet {
    struct Sizes {
        int64_t L, F, M, H, rows;  // 1 + blocks, features, again features, readout, rows of a table
    };
    struct Block {
        Mix<R> before, after;
    };
    static constexpr bool VECTORS = true;
    Sizes sizes;
    Weights<R> weights;
    Dense<R> p, q;
    Perceptron<R> phi, readout;
    Mix<R> mix;
    std::vector<Block> blocks;  // the first is empty
    std::vector<const R*> tables;

    static int64_t group(int64_t) { return Matrices<R>::WIDTH * LANES<R>; }
    static int64_t channels(int64_t) { return 3; }

    explicit TensorNet(Sizes s) : sizes(s) {}

    void take_weights(const R* const* tensors, int threads) {
        const int64_t F = sizes.F, H = sizes.H;
        auto take_mix = [&](Mix<R>& to) {
            for (Dense<R>& layer : to.layers) layer = weights.layer({1, F, 1, F, false}, tensors);
        };
        weights.restart(), blocks.assign(sizes.L, {});
        p = weights.layer({1, F, 1, F, true}, tensors);
        q = weights.layer({1, F, 1, F, false}, tensors);
        phi = weights.perceptron({1, F, 1, F, true}, {3, F, 1, F, true}, SILU, tensors);
        take_mix(mix);
        for (int64_t n = 1; n < sizes.L; n++) take_mix(blocks[n].before), take_mix(blocks[n].after);
        readout = weights.perceptron({1, H, 3, F, true}, {1, 1, 1, H, true}, SILU, tensors);
        weights.pack(threads);
    }
};

template <class R>
class TensorNetPass : public Pass<R, TensorNet<R>> {
    using Base = Pass<R, TensorNet<R>>;
    using Base::begin, Base::end, Base::graph, Base::keep, Base::net, Base::sizes, Base::work;
    using Inner = typename Base::Inner;
    const int64_t N = graph.num_rows, L = sizes.L, F = padded<R>(sizes.F), H = padded<R>(sizes.H);
    struct State {         // matrices: parts of (N, F), (N, 3 F), (N, 5 F)
        Parts<R> x, b, y;  // X, b(X), Y: what is sent
        Parts<R> m, c, d;  // M: what is received; b(Y M + M Y), D
    };
    std::vector<State> states;  // of the first, m alone
    struct First {
        Quantity<R> z, p, q, squares, normed, scale;  // (N, F), of scale (N, 3 F)
        Parts<R> mixed;
        Inner phi;
    } first;
    Parts<R> x_end;
    Quantity<R> squares, normed, energy;
    Inner readout;
    R* mask = nullptr;
    const R* seeds = nullptr;

    Convolution<R, Surroundings<R>> surroundings() const {
        return {graph, net.tables[0], F, sizes.rows, {first.p, first.q}, states[0].m, pull, rate};
    }
    Convolution<R, Matrices<R>> convolution(int64_t n) const {
        return {graph, net.tables[n], F, sizes.rows, states[n].y, states[n].m, pull, rate};
    }
    const Parts<R>& x_after(int64_t n) const { return n + 1 < L ? states[n + 1].x : x_end; }

public:
    R *pull = nullptr, *rate = nullptr;

    TensorNetPass(const TensorNet<R>& net, Work<R>& work, int threads, bool keep)
        : Base(net, work, threads, keep) {
        work.lay_out([&] { plan(); });
        if (mask) std::fill(mask, mask + F, R(0)), std::fill(mask, mask + sizes.F, R(1));
    }

private:
    using Shared = R* [3];
    // Three arrays. Without a way back from a loss, gradients are taken once for all blocks, in
    // `g`, and numbers where they are given `x`: of what only the atom's own next step reads.
    Parts<R> matrices(Shared* x, Shared& g) {
        Parts<R> parts;
        for (int p = 0; p < 3; p++) {
            const int64_t width = ROWS_OF[p] * F;
            Quantity<R>& q = parts.part[p];
            if (keep) {
                q = work.quantity(N, width, true);
                continue;
            }
            if (x && !(*x)[p]) (*x)[p] = work.take(N * width);
            if (!g[p]) g[p] = work.take(N * width);
            q.stride = width, q.x[VALUE] = x ? (*x)[p] : work.take(N * width), q.g[VALUE] = g[p];
        }
        return parts;
    }

    // Blocks share gradients, of which neighbours read those of M while the next are written, and
    // what only an atom's own row is made of.
    void plan() {
        Shared b = {}, c = {}, g_x = {}, g_b = {}, g_y = {}, g_m[2] = {}, g_c = {}, g_d = {};
        states.assign(L, {});
        for (Quantity<R>* own : {&first.z, &first.p, &first.q, &first.squares, &first.normed})
            *own = work.quantity(N, F, keep);
        first.scale = work.quantity(N, 3 * F, keep), first.phi = this->inner(F);
        first.mixed = matrices(nullptr, g_d), states[0].m = matrices(nullptr, g_m[0]);
        for (int64_t n = 1; n < L; n++) {
            State& at = states[n];
            at.x = matrices(nullptr, g_x), at.b = matrices(&b, g_b), at.y = matrices(nullptr, g_y);
            at.m = matrices(nullptr, g_m[n % 2]), at.c = matrices(&c, g_c),
            at.d = matrices(nullptr, g_d);
        }
        x_end = matrices(nullptr, g_x), readout = this->inner(H);
        squares = work.quantity(N, 3 * F, keep), normed = work.quantity(N, 3 * F, keep);
        energy = work.quantity(N, LANES<R>, keep), mask = work.take(F);
        pull = work.take(4 * graph.num_edges),
        rate = keep ? work.take(4 * graph.num_edges) : nullptr;
    }

    template <Mode MODE>
    using T = typename Arithmetic<R, MODE>::T;
    template <Mode MODE>
    Rooms<R, MODE> rooms() const {
        return {F};
    }
    template <class B>
    void each(int64_t lo, int64_t hi, B body) const {
        for (int64_t i = lo; i < hi; i++)
            for (int64_t f = 0; f < F; f += LANES<R>) body(i, f);
    }
    template <Mode MODE>
    Norm<R, MODE> norm(int64_t blocks) const {
        return {mask, F, blocks, R(blocks * sizes.F)};
    }

    void clear(const Parts<R>& of, int64_t lo, int64_t hi, Mode mode) const {
        for (int p = 0; p < 3; p++) {
            R* x = of.part[p].x[mode];
            std::fill(x + ROWS_OF[p] * lo * F, x + ROWS_OF[p] * hi * F, R(0));
        }
    }

    template <Mode MODE>
    void forward(int64_t n, int64_t part) {
        clear(states[n].m, begin(part), end(part), MODE);
        Base::by_rows(begin(part), end(part), [&](int64_t lo, int64_t hi) {
            if (n)
                convolution(n).template forward<MODE>(lo, hi), update<MODE>(n, lo, hi);
            else
                surroundings().template forward<MODE>(lo, hi), start<MODE>(lo, hi);
            if (n + 1 < L)
                send<MODE>(n + 1, lo, hi);
            else
                read_out<MODE>(lo, hi);
        });
    }

    // From the first sums to X.
    template <Mode MODE>
    void start(int64_t lo, int64_t hi) {
        using A = Arithmetic<R, MODE>;
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto m = rooms<MODE>().value(states[0].m, i, f);
            A::put(first.squares.x, i * F + f, dot(m, m));
        });
        for (int64_t i = lo; i < hi; i++) norm<MODE>(1).forward(first.squares, first.normed, i);
        net.phi.forward(lo, hi, first.normed, this->at_rows(first.phi, lo, F), first.scale, MODE,
                        false);
        net.mix.forward(lo, hi, states[0].m, first.mixed, F, MODE);
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto x = rooms<MODE>().value(first.mixed, i, f);
            for (int k = 0; k < 9; k++)
                x.c[k] = x.c[k] * A::get(first.scale.x, (3 * i + PART_OF[k]) * F + f);
            rooms<MODE>().put(x_after(0), i, f, x);
        });
    }
    template <Mode MODE>
    void start_back(int64_t lo, int64_t hi) {
        using A = Arithmetic<R, MODE>;
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto g = rooms<MODE>().gradient(x_after(0), i, f),
                 x = rooms<MODE>().value(first.mixed, i, f);
            T<MODE> of_scale[3] = {};
            for (int k = 0; k < 9; k++) {
                const int p = PART_OF[k];
                of_scale[p] = of_scale[p] + g.c[k] * x.c[k];
                g.c[k] = g.c[k] * A::get(first.scale.x, (3 * i + p) * F + f);
            }
            for (int p = 0; p < 3; p++) A::put(first.scale.g, (3 * i + p) * F + f, of_scale[p]);
            rooms<MODE>().put_gradient(first.mixed, i, f, g);
        });
        net.mix.backward(lo, hi, first.mixed, states[0].m, F, MODE, false);
        net.phi.backward(lo, hi, first.scale, this->at_rows(first.phi, lo, F), first.normed, MODE);
        for (int64_t i = lo; i < hi; i++) norm<MODE>(1).backward(first.squares, first.normed, i);
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto g = rooms<MODE>().gradient(states[0].m, i, f),
                 m = rooms<MODE>().value(states[0].m, i, f);
            auto of_square = R(2) * A::get(first.squares.g, i * F + f);
            for (int k = 0; k < 9; k++) g.c[k] = g.c[k] + of_square * m.c[k];
            rooms<MODE>().put_gradient(states[0].m, i, f, g);
        });
    }

    // What the atoms lo to hi send in block n.
    template <Mode MODE>
    void send(int64_t n, int64_t lo, int64_t hi) {
        const auto& at = states[n];
        each(lo, hi, [&](int64_t i, int64_t f) {
            rooms<MODE>().put(at.b, i, f, bounded<R>(rooms<MODE>().value(at.x, i, f)));
        });
        net.blocks[n].before.forward(lo, hi, at.b, at.y, F, MODE);
    }
    // From the gradients of what was sent, and of b(X), to those of X.
    template <Mode MODE>
    void send_back(int64_t n, int64_t lo, int64_t hi) {
        const State& at = states[n];
        net.blocks[n].before.backward(lo, hi, at.y, at.b, F, MODE, true);
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto x = rooms<MODE>().value(at.x, i, f), g = rooms<MODE>().gradient(at.b, i, f);
            rooms<MODE>().put_gradient(at.x, i, f, bounded_back<R>(x, g));
        });
    }

    template <Mode MODE>
    void update(int64_t n, int64_t lo, int64_t hi) {
        const State& at = states[n];
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto y = matrix_of<R>(rooms<MODE>().value(at.y, i, f)),
                 m = matrix_of<R>(rooms<MODE>().value(at.m, i, f));
            rooms<MODE>().put(at.c, i, f, bounded<R>(parts_of<R>(products(y, m, m, y))));
        });
        net.blocks[n].after.forward(lo, hi, at.c, at.d, F, MODE);
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto b = rooms<MODE>().value(at.b, i, f), change = rooms<MODE>().value(at.d, i, f);
            auto d = matrix_of<R>(change), square = parts_of<R>(product(d, d));
            for (int k = 0; k < 9; k++) b.c[k] = b.c[k] + change.c[k] + square.c[k];
            rooms<MODE>().put(x_after(n), i, f, b);
        });
    }
    // From the gradients of X' to those of b(X), of M, and of Y as far as the atom itself goes.
    template <Mode MODE>
    void update_back(int64_t n, int64_t lo, int64_t hi) {
        const State& at = states[n];
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto g = rooms<MODE>().gradient(x_after(n), i, f);
            rooms<MODE>().put_gradient(at.b, i, f, g);
            auto d = turned(matrix_of<R>(rooms<MODE>().value(at.d, i, f))), g_x = matrix_of<R>(g);
            auto of_d = parts_of<R>(products(g_x, d, d, g_x));
            for (int k = 0; k < 9; k++) g.c[k] = g.c[k] + of_d.c[k];
            rooms<MODE>().put_gradient(at.d, i, f, g);
        });
        net.blocks[n].after.backward(lo, hi, at.d, at.c, F, MODE, false);
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto y = matrix_of<R>(rooms<MODE>().value(at.y, i, f)),
                 m = matrix_of<R>(rooms<MODE>().value(at.m, i, f));
            auto c = parts_of<R>(products(y, m, m, y));
            auto g = matrix_of<R>(bounded_back<R>(c, rooms<MODE>().gradient(at.c, i, f)));
            y = turned(y), m = turned(m);
            rooms<MODE>().put_gradient(at.y, i, f, parts_of<R>(products(g, m, m, g)));
            rooms<MODE>().put_gradient(at.m, i, f, parts_of<R>(products(y, g, g, y)));
        });
    }

    template <Mode MODE>
    void read_out(int64_t lo, int64_t hi) {
        using A = Arithmetic<R, MODE>;
        Inner at = this->at_rows(readout, lo, H);
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto x = rooms<MODE>().value(x_end, i, f);
            T<MODE> total[3] = {};
            for (int k = 0; k < 9; k++) total[PART_OF[k]] = total[PART_OF[k]] + x.c[k] * x.c[k];
            for (int p = 0; p < 3; p++) A::put(squares.x, (3 * i + p) * F + f, total[p]);
        });
        for (int64_t i = lo; i < hi; i++) norm<MODE>(3).forward(squares, normed, i);
        net.readout.forward(lo, hi, normed, at, energy, MODE, false);
        for (int64_t i = lo; i < hi; i++) {
            R* g = energy.g[MODE] + i * LANES<R>;
            std::fill(g, g + LANES<R>, R(0));
            g[0] = MODE == VALUE ? R(1) : seeds[graph.order[i]];
        }
        net.readout.backward(lo, hi, energy, at, normed, MODE);
        for (int64_t i = lo; i < hi; i++) norm<MODE>(3).backward(squares, normed, i);
        each(lo, hi, [&](int64_t i, int64_t f) {
            auto x = rooms<MODE>().value(x_end, i, f);
            for (int k = 0; k < 9; k++)
                x.c[k] = R(2) * x.c[k] * A::get(squares.g, (3 * i + PART_OF[k]) * F + f);
            rooms<MODE>().put_gradient(x_end, i, f, x);
        });
        L > 1 ? update_back<MODE>(L - 1, lo, hi) : start_back<MODE>(lo, hi);
    }
    template <Mode MODE>
    void backward(int64_t n, int64_t part) {
        if (n == 0) return back_to_elements<MODE>(part);
        Base::by_rows(begin(part), end(part), [&](int64_t lo, int64_t hi) {
            convolution(n).template backward<MODE, true>(lo, hi);
            send_back<MODE>(n, lo, hi);
            n > 1 ? update_back<MODE>(n - 1, lo, hi) : start_back<MODE>(lo, hi);
        });
    }
    template <Mode MODE>
    void back_to_elements(int64_t part) {
        const int64_t from = begin(part), to = end(part);
        if (!keep) return surroundings().template backward<MODE, false>(from, to);
        for (Quantity<R>* own : {&first.p, &first.q})
            std::fill(own->g[MODE] + from * F, own->g[MODE] + to * F, R(0));
        surroundings().template backward<MODE, true>(from, to);
        R* g_z = first.z.g[MODE] + from * F;
        net.p.backward(to - from, first.p.g[MODE] + from * F, F, g_z, F);
        net.q.backward(to - from, first.q.g[MODE] + from * F, F, g_z, F, g_z);
    }

    void embed(int64_t from, int64_t to, const R* embeddings) {
        Base::embed(from, to, embeddings, first.z.x[VALUE], F);
        const R* z = first.z.x[VALUE] + from * F;
        net.p.forward(to - from, z, F, first.p.x[VALUE] + from * F, F, VALUE);
        net.q.forward(to - from, z, F, first.q.x[VALUE] + from * F, F, VALUE);
    }

    void fetch(int64_t stage) {
        if (stage < 2) return;
        for (const Quantity<R>& q :
             (stage > L ? states[2 * L - stage].m : states[stage - 1].y).part)
            this->exchange((stage > L ? q.g : q.x)[VALUE], q.stride, q.stride);
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
            const int64_t lo = begin(part), hi = end(part);
            if (stage == 0)
                std::fill(first.z.x[TANGENT] + lo * F, first.z.x[TANGENT] + hi * F, R(0));
            else if (stage <= L)
                forward<TANGENT>(stage - 1, part);
            else
                backward<TANGENT>(2 * L - stage, part);
        });
        std::vector<Sum<R>> sums = {{first.p, first.z, N},
                                    {first.q, first.z, N},
                                    {first.phi.s, first.normed, N},
                                    {first.scale, first.phi.a, N}};
        Mix<R>::add_sums(sums, first.mixed, states[0].m, F, N);
        for (int64_t n = 1; n < L; n++) {
            Mix<R>::add_sums(sums, states[n].y, states[n].b, F, N);
            Mix<R>::add_sums(sums, states[n].d, states[n].c, F, N);
        }
        sums.push_back({readout.s, normed, N}), sums.push_back({energy, readout.a, N});
        gradients_of_weights(net.weights, sums, this->threads, true, of_weights);
        for (int64_t n = 0; n < L; n++, of_tables += sizes.rows * 3 * sizes.F)
            if (n)
                this->gradient_of_table(convolution(n), of_tables);
            else
                this->gradient_of_table(surroundings(), of_tables);
        this->give_embeddings(first.z.g[TANGENT], F, of_embeddings);
    }
};

}  // namespace molnets
