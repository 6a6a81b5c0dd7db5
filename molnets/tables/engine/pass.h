// What the passes of every network share: where numbers are kept, edges to forces, and the order of
// work.
//
// Energies and forces are one pass forward and one back, MODE VALUE. The gradient of a loss needs
// no second derivative of the graph of operations: with its gradients s_i by the energies of the
// atoms and those by forces and virials held fixed, which are the rates ṙ of edges,
//
//     ∇_θ L = ∇_θ J,      J = Σ_i s_i ε_i + dE/dε at r + ε ṙ,
//
// so a second pass, MODE TANGENT, carries ẋ forward and P = ∂J/∂x back; J's gradients by the
// tangents are G = ∂E/∂x, known from the first. Each stage needs of its neighbours what the one
// before made: independent parts go through all stages by themselves, others wait for each other
// after each.

#pragma once

#include "convolution.h"
#include "weights.h"

namespace molnets {

constexpr int64_t ROWS = 24;         // atoms that go through dense layers at a time
constexpr int64_t MOST_SUMS = 8;     // parts that a table's gradient is summed in,
constexpr int64_t FEW_EDGES = 2000;  // with at least so many edges

// Fills the rows behind those of this process's atoms, of a matrix whose rows are so many numbers
// apart and so many wide, with what other processes have; not 0: it failed.
using Exchange = int64_t (*)(void* rows, int64_t stride, int64_t width);
struct ExchangeFailed {};

// Memory for one call, taken piece by piece, and the graph.
template <class R>
struct Work {
    Graph<R> graph;
    Exchange exchange = nullptr;
    Buffer<R> memory;
    int64_t used = 0;
    bool counting = false;
    R* base = nullptr;

    R* take(int64_t size) {
        int64_t at = used;
        used += padded<R>(size) + 17 * LANES<R>;  // pieces do not begin pages apart from each other
        return counting ? nullptr : base + at;
    }
    // Let `plan` take its pieces twice: to count, then to have them.
    template <class F>
    void lay_out(F plan) {
        counting = true, used = 0;
        plan();
        base = memory.room(used);
        counting = false, used = 0;
        plan();
    }
    Quantity<R> quantity(int64_t rows, int64_t width, bool keep) {
        Quantity<R> q;
        q.stride = width;
        for (int m = 0; m < (keep ? 2 : 1); m++)
            q.x[m] = take(rows * width), q.g[m] = take(rows * width);
        return q;
    }
};

template <class R, class Network>
class Pass {
protected:
    const typename Network::Sizes& sizes;
    const Network& net;
    Work<R>& work;
    Graph<R>& graph;
    const int threads;
    const bool keep;  // everything, for a way back from a loss
    using Inner = typename Perceptron<R>::Inner;

    Pass(const Network& net, Work<R>& work, int threads, bool keep)
        : sizes(net.sizes), net(net), work(work), graph(work.graph), threads(threads), keep(keep) {}

    // The inside of a perceptron: all of it is kept, or its slopes alone.
    Inner inner(int64_t width) {
        Inner at;
        int64_t N = graph.num_rows;
        if (keep) at.s = work.quantity(N, width, true), at.a = work.quantity(N, width, true);
        at.slope = work.take(N * width);
        if (keep) at.bend = work.take(N * width);
        return at;
    }
    // The same with room for the rows lo to lo + ROWS where nothing is kept.
    Inner at_rows(Inner at, int64_t lo, int64_t width) const {
        if (!keep)
            at.s.x[0] = at.a.x[0] = at.s.g[0] = at.a.g[0] = scratch<R>(ROWS * width) - lo * width;
        return at;
    }
    template <class F>
    static void by_rows(int64_t lo, int64_t hi, F body) {
        for (int64_t at = lo; at < hi; at += ROWS) body(at, std::min(at + ROWS, hi));
    }
    int64_t begin(int64_t part) const { return graph.parts[part]; }
    int64_t end(int64_t part) const { return graph.parts[part + 1]; }

    // Through all stages, part by part or stage by stage; `fetch` gets what the next one needs of
    // others.
    template <class F, class G>
    void run(int64_t num_stages, F stage, G fetch) {
        int64_t P = graph.num_parts();
        if (graph.independent && !work.exchange)
            Pool::each(P, threads, [&](int64_t part) {
                for (int64_t s = 0; s < num_stages; s++) stage(s, part);
            });
        else
            for (int64_t s = 0; s < num_stages; s++) {
                if (work.exchange) fetch(s);
                Pool::each(P, threads, [&](int64_t part) { stage(s, part); });
            }
    }
    template <class F>
    void run(int64_t num_stages, F stage) {
        run(num_stages, stage, [](int64_t) {});
    }

    // Energies of atoms and forces: embed(lo, hi), forward(block, part) and backward(block, part),
    // which fill `energy` and the pulls, 0 before.
    template <class E, class F, class B, class G>
    void compute(const Quantity<R>& energy, R* pull, R* energies, R* forces, E embed, F forward,
                 B backward, G fetch) {
        const int64_t L = sizes.L, num_pulls = Network::VECTORS ? 4 : 1;
        embed(graph.num_atoms, graph.num_rows);
        auto stages = [&](int64_t stage, int64_t part) {
            const int64_t lo = begin(part), hi = end(part);
            if (stage == 0) {
                embed(lo, hi);
                for (int64_t k = 0; k < num_pulls; k++)
                    std::fill(pull + k * graph.num_edges + graph.first[2 * lo],
                              pull + k * graph.num_edges + graph.first[2 * hi], R(0));
            } else if (stage <= L) {
                forward(stage - 1, part);
            } else {
                backward(2 * L - stage, part);
            }
            if (stage < 2 * L) return;
            pull_atoms(part, pull, Network::VECTORS, forces);
            for (int64_t i = lo; i < hi; i++)
                energies[graph.order[i]] = energy.x[VALUE][i * LANES<R>];
        };
        run(2 * L + 1, stages, fetch);
    }

    // The gradients by the embeddings, from those of the rows.
    void give_embeddings(const R* rows, int64_t stride, R* of_embeddings) const {
        for (int64_t i = 0; i < graph.num_rows; i++)
            std::copy(rows + i * stride, rows + i * stride + sizes.F,
                      of_embeddings + graph.order[i] * sizes.F);
    }

    void exchange(R* rows, int64_t stride, int64_t width) const {
        if (work.exchange(rows, stride, width)) throw ExchangeFailed();
    }

    // Fill rows with the embeddings of their atoms.
    void embed(int64_t lo, int64_t hi, const R* embeddings, R* x, int64_t stride) const {
        int64_t F = sizes.F;
        for (int64_t i = lo; i < hi; i++) {
            std::copy(embeddings + graph.order[i] * F, embeddings + (graph.order[i] + 1) * F,
                      x + i * stride);
            std::fill(x + i * stride + F, x + i * stride + padded<R>(F), R(0));
        }
    }

    // The forces of the edges of a part, from their pulls.
    void pull_atoms(int64_t part, const R* pull, bool vectors, R* forces) const {
        const int64_t E = graph.num_edges;
        for (int64_t i = begin(part); i < end(part); i++)
            for (int k = 0; k < 3; k++) forces[3 * graph.order[i] + k] = 0;
        for (int64_t i = begin(part); i < end(part); i++)
            for (int64_t e = graph.first[2 * i]; e < graph.first[2 * i + 2]; e++) {
                R force[3];
                force_of(e, pull, vectors, E, force);
                R *to_i = forces + 3 * graph.order[i],
                  *to_j = forces + 3 * graph.order[graph.sender[e]];
                for (int k = 0; k < 3; k++) {
                    to_i[k] += force[k];
                    if (e < graph.first[2 * i + 1]) to_j[k] -= force[k];
                }
            }
    }

    // ∂E/∂r_ij from ∂E/∂d and ∂E/∂u.
    void force_of(int64_t e, const R* pull, bool vectors, int64_t E, R* force) const {
        R u[3] = {graph.unit[0][e], graph.unit[1][e], graph.unit[2][e]}, along = 0,
          turn[3] = {0, 0, 0};
        for (int k = 0; vectors && k < 3; k++)
            turn[k] = pull[(k + 1) * E + e] / graph.d[e], along += turn[k] * u[k];
        for (int k = 0; k < 3; k++) force[k] = (pull[e] - along) * u[k] + turn[k];
    }

public:
    // Σ r ⊗ ∂E/∂r over the pairs of each sample, (B, 3, 3).
    void virials(const R* pull, bool vectors, const int64_t* samples, int64_t B, R* virial) const {
        Pool::each(B, threads, [&](int64_t b) {
            double total[9] = {};
            for (int64_t i = samples[b]; i < samples[b + 1]; i++)
                for (int64_t e = graph.first[2 * i]; e < graph.first[2 * i + 2]; e++) {
                    R force[3], share = e < graph.first[2 * i + 1] ? R(1) : R(0.5);
                    force_of(e, pull, vectors, graph.num_edges, force);
                    for (int k = 0; k < 9; k++)
                        total[k] += share * graph.d[e] * graph.unit[k / 3][e] * force[k % 3];
                }
            std::copy(total, total + 9, virial + 9 * b);
        });
    }

    // The shares of the atoms in that, half of each pair, (N, 3, 3).
    void virials_of_atoms(const R* pull, bool vectors, R* virial) const {
        std::fill(virial, virial + 9 * graph.num_atoms, R(0));
        Pool::each(graph.num_parts(), threads, [&](int64_t part) {
            for (int64_t i = begin(part); i < end(part); i++)
                for (int64_t e = graph.first[2 * i]; e < graph.first[2 * i + 2]; e++) {
                    R force[3], *of_i = virial + 9 * graph.order[i],
                                *of_j = virial + 9 * graph.order[graph.sender[e]];
                    force_of(e, pull, vectors, graph.num_edges, force);
                    const bool both = e < graph.first[2 * i + 1];  // then j is of this part, too
                    for (int k = 0; k < 9; k++) {
                        R half = R(0.5) * graph.d[e] * graph.unit[k / 3][e] * force[k % 3];
                        of_i[k] += half;
                        if (both) of_j[k] += half;
                    }
                }
        });
    }

    // ḋ and u̇ of the edges, when atoms move by `direction`, (N, 3), and samples are strained, (B,
    // 3, 3).
    void rates(const R* direction, const R* strain, const int64_t* samples, int64_t B, bool vectors,
               R* rate) const {
        const int64_t E = graph.num_edges;
        Pool::each(B, Pool::worth(20.0 * E, threads), [&](int64_t b) {
            const R* S = strain ? strain + 9 * b : nullptr;
            for (int64_t i = samples[b]; i < samples[b + 1]; i++)
                for (int64_t e = graph.first[2 * i]; e < graph.first[2 * i + 2]; e++) {
                    const R *of_i = direction + 3 * graph.order[i],
                            *of_j = direction + 3 * graph.order[graph.sender[e]];
                    R u[3] = {graph.unit[0][e], graph.unit[1][e], graph.unit[2][e]}, v[3],
                      along = 0;
                    for (int k = 0; k < 3; k++) {
                        v[k] = of_j[k] - of_i[k];
                        for (int a = 0; S && a < 3; a++) v[k] += graph.d[e] * u[a] * S[3 * a + k];
                        along += v[k] * u[k];
                    }
                    rate[e] = along;
                    for (int k = 0; vectors && k < 3; k++)
                        rate[(k + 1) * E + e] = (v[k] - along * u[k]) / graph.d[e];
                }
        });
    }

    // ∂J/∂c of one block, (rows, channels, M), summed in a few parts whose number threads do not
    // change.
    template <class Message>
    void gradient_of_table(const Convolution<R, Message>& convolution, R* out) const {
        constexpr int64_t CHANNELS = Message::CHANNELS, group = Message::WIDTH * LANES<R>;
        int64_t M = padded<R>(sizes.M), rows = sizes.rows, size = 2 * rows * CHANNELS * M,
                P = graph.num_parts();
        int64_t num =
            std::min(P, std::max<int64_t>(1, std::min(MOST_SUMS, graph.num_edges / FEW_EDGES)));
        R* sums = scratch<R>(num * size);
        Pool::each(num, threads, [&](int64_t n) {
            std::fill(sums + n * size, sums + (n + 1) * size, R(0));
            convolution.gradient_of_table(begin(P * n / num), end(P * (n + 1) / num - 1),
                                          sums + n * size);
        });
        visit_table<R>(rows, CHANNELS, M, sizes.M, group,
                       [&](int64_t row, int64_t at, int64_t width, int64_t place) {
                           int64_t D = at + width, next = D + 2 * width;
                           R total = 0;  // D of a row is its c less that of the row before
                           for (const R* G = sums; G < sums + num * size; G += size)
                               total +=
                                   G[at] + (row ? G[D] : R(0)) - (row + 1 < rows ? G[next] : R(0));
                           out[place] = total;
                       });
    }
};

}  // namespace molnets
