// Sums over neighbours whose filters are splines of the distance, forward and back.
//
// What an edge carries is its Message's: see messages.h. The numbers of one atom that its edges
// share stay in registers, a group of columns at a time, while all edges pass by.

#pragma once

#include "graph.h"
#include "messages.h"

namespace molnets {

template <class R, class Message>
struct Convolution {
    const Graph<R>& graph;
    const R* table;
    int64_t M, table_rows;
    Parts<R> sent, received;
    R* pull;        // ∂E/∂d of each edge, and with directions ∂E/∂u: (1 or 4, E)
    const R* rate;  // ḋ of each edge, and with directions u̇: (1 or 4, E)

    static constexpr int CHANNELS = Message::CHANNELS, W = LANES<R>, U = Message::WIDTH;
    static constexpr bool DIRECTED = Message::DIRECTED;
    using In = typename Message::In;
    using Out = typename Message::Out;
    using Edge = molnets::Edge<R>;
    using Filter = typename Message::Filter;

    // Of register n of the group of N that begins at column f.
    template <int N>
    Filter filter(const Edge& e, int64_t f, int n, bool values, bool slopes) const {
        Filter at;
        for (int c = 0; c < CHANNELS; c++) {
            const R* T = table + 2 * ((c * M + f) * table_rows + e.knot * (N * W)) + n * W;
            if (values) at.w[c] = load(T);
            for (int p = 1; p <= ORDER; p++) {
                Vec<R> D = load(T + (2 * p + 1) * N * W);
                if (values) at.w[c] += e.w[p - 1] * D;
                if (slopes) at.dw[c] = p > 1 ? at.dw[c] + e.dw[p - 1] * D : e.dw[0] * D;
            }
        }
        return at;
    }

    // Call body(edge, number, sender) for the edges of atom i.
    template <Mode MODE, class F>
    void walk(int64_t i, F body) const {
        const R per_length = 1 / graph.spacing;
        const int64_t E = graph.num_edges, lo = graph.first[2 * i], hi = graph.first[2 * i + 2];
        for (int64_t begin = lo; begin < hi; begin += W) {
            Basis<R> basis;
            basis.fill(graph.t + begin, per_length);
            for (int64_t n = begin; n < begin + W && n < hi; n++) {
                Edge e;
                e.knot = graph.knot[n];
                R speed = MODE == TANGENT ? rate[n] : R(1);
                for (int p = 0; p < ORDER; p++)
                    e.w[p] = basis.w[p][n - begin], e.dw[p] = basis.dw[p][n - begin] * speed;
                for (int k = 0; DIRECTED && k < 3; k++) {
                    e.u[k] = graph.unit[k][n];
                    if (MODE == TANGENT) e.du[k] = rate[(k + 1) * E + n];
                }
                body(e, n, graph.sender[n]);
            }
        }
    }
    // Call one of both for each group of columns.
    template <class F, class G>
    void by_groups(F many, G one) const {
        int64_t f = 0;
        for (; f + U * W <= M; f += U * W) many(f);
        for (; f < M; f += W) one(f);
    }

    // The sums of atoms lo to hi; complete for them as soon as this returns.
    template <Mode MODE>
    void forward(int64_t lo, int64_t hi) const {
        by_groups([&](int64_t f) { forward_columns<MODE, U>(lo, hi, f); },
                  [&](int64_t f) { forward_columns<MODE, 1>(lo, hi, f); });
    }
    template <Mode MODE, int N>
    void forward_columns(int64_t lo, int64_t hi, int64_t f) const {
        for (int64_t i = lo; i < hi; i++) {
            In x_i[N], dx_i[N];
            Out y_i[N];
            Rows<R> from_i = sent.of(i), to_i = received.of(i);
            for (int n = 0; n < N; n++) {
                x_i[n] = In::get(from_i.x[VALUE], f + n * W, M),
                y_i[n] = Out::get(to_i.x[MODE], f + n * W, M);
                if (MODE == TANGENT) dx_i[n] = In::get(from_i.x[TANGENT], f + n * W, M);
            }
            const int64_t both = graph.first[2 * i + 1];
            walk<MODE>(i, [&](const Edge& e, int64_t edge, int64_t j) {
                Rows<R> from_j = sent.of(j), to_j = received.of(j);
                for (int n = 0; n < N; n++) {
                    Filter at = filter<N>(e, f, n, true, MODE == TANGENT);
                    In dx_j{}, x_j = In::get(from_j.x[VALUE], f + n * W, M);
                    if (MODE == TANGENT) dx_j = In::get(from_j.x[TANGENT], f + n * W, M);
                    Message::template deliver<MODE>(e, 1, x_j, dx_j, x_i[n], at, y_i[n]);
                    if (edge >= both) continue;
                    Out y_j = Out::get(to_j.x[MODE], f + n * W, M);
                    Message::template deliver<MODE>(e, -1, x_i[n], dx_i[n], x_j, at, y_j);
                    y_j.put(to_j.x[MODE], f + n * W, M);
                }
            });
            for (int n = 0; n < N; n++) y_i[n].put(to_i.x[MODE], f + n * W, M);
        }
    }

    // The gradients of what atoms lo to hi sent, complete as soon as this returns; VALUE: pulls
    // too.
    template <Mode MODE, bool SENT>
    void backward(int64_t lo, int64_t hi) const {
        by_groups([&](int64_t f) { backward_columns<MODE, SENT, U>(lo, hi, f); },
                  [&](int64_t f) { backward_columns<MODE, SENT, 1>(lo, hi, f); });
    }
    template <Mode MODE, bool SENT, int N>
    void backward_columns(int64_t lo, int64_t hi, int64_t f) const {
        for (int64_t i = lo; i < hi; i++) {
            In x_i[N], g_i[N];
            Out G_i[N], P_i[N];
            Rows<R> from_i = sent.of(i), to_i = received.of(i);
            for (int n = 0; n < N; n++) {
                G_i[n] = Out::get(to_i.g[VALUE], f + n * W, M);
                if (MODE == TANGENT)
                    P_i[n] = Out::get(to_i.g[TANGENT], f + n * W, M);
                else
                    x_i[n] = In::get(from_i.x[VALUE], f + n * W, M);
                if (SENT) g_i[n] = In::get(from_i.g[MODE], f + n * W, M);
            }
            const int64_t both = graph.first[2 * i + 1];
            walk<MODE>(i, [&](const Edge& e, int64_t edge, int64_t j) {
                Rows<R> from_j = sent.of(j), to_j = received.of(j);
                Vec<R> pulls[DIRECTED ? 4 : 1] = {};
                for (int n = 0; n < N; n++) {
                    Filter at = filter<N>(e, f, n, SENT || DIRECTED, true);
                    In x_j{}, g_j{};
                    Out G_j = Out::get(to_j.g[VALUE], f + n * W, M), P_j{};
                    if (MODE == TANGENT)
                        P_j = Out::get(to_j.g[TANGENT], f + n * W, M);
                    else
                        x_j = In::get(from_j.x[VALUE], f + n * W, M);
                    const bool own = edge < both;  // then j is of this part, too
                    if (SENT && own) g_j = In::get(from_j.g[MODE], f + n * W, M);
                    Message::template give_back<MODE, SENT>(e, -1, x_i[n], x_j, G_j, P_j, at,
                                                            g_i[n], g_j, pulls);
                    if (SENT && (own || Message::OF_PAIRS))
                        Message::template give_back<MODE, true>(e, 1, x_j, x_i[n], G_i[n], P_i[n],
                                                                at, g_j, g_i[n], pulls);
                    else
                        Message::template give_back<MODE, false>(e, 1, x_j, x_i[n], G_i[n], P_i[n],
                                                                 at, g_j, g_i[n], pulls);
                    if (SENT && own) g_j.put(from_j.g[MODE], f + n * W, M);
                }
                for (int k = 0; MODE == VALUE && k < (DIRECTED ? 4 : 1); k++)
                    pull[k * graph.num_edges + edge] += sum<R>(pulls[k]);
            });
            for (int n = 0; SENT && n < N; n++) g_i[n].put(from_i.g[MODE], f + n * W, M);
        }
    }

    // Add ∂J/∂c and ∂J/∂D of the edges of atoms lo to hi to `G_T`, as a table.
    void gradient_of_table(int64_t lo, int64_t hi, R* G_T) const {
        for (int64_t i = lo; i < hi; i++) {
            Rows<R> from_i = sent.of(i), to_i = received.of(i);
            const int64_t both = graph.first[2 * i + 1];
            walk<TANGENT>(i, [&](const Edge& e, int64_t edge, int64_t j) {
                Rows<R> from_j = sent.of(j), to_j = received.of(j);
                R share =
                    edge < both ? R(1) : R(0.5);  // of an edge from part to part both have one
                for (int64_t f = 0; f < M; f += W) {
                    Filter G{};  // what W and ∂W/∂d ḋ are multiplied with in J
                    meet(e, 1, from_j, from_i, to_i, f, G);
                    meet(e, -1, from_i, from_j, to_j, f, G);
                    int64_t width = group_width<R>(f, M, U * W);
                    for (int n = 0; n < CHANNELS; n++) {
                        R* T = G_T + place_in_table<R>(e.knot, n, f, M, table_rows, U * W);
                        store(T, load(T) + share * G.w[n]);
                        for (int p = 1; p <= ORDER; p++) {
                            R* D = T + (2 * p + 1) * width;
                            store(D,
                                  load(D) + share * (e.w[p - 1] * G.w[n] + e.dw[p - 1] * G.dw[n]));
                        }
                    }
                }
            });
        }
    }
    void meet(const Edge& e, R sign, const Rows<R>& from, const Rows<R>& from_receiver,
              const Rows<R>& to, int64_t f, Filter& at) const {
        In x = In::get(from.x[VALUE], f, M), dx = In::get(from.x[TANGENT], f, M), receiver{};
        if (Message::OF_PAIRS) receiver = In::get(from_receiver.x[VALUE], f, M);
        Out G = Out::get(to.g[VALUE], f, M), P = Out::get(to.g[TANGENT], f, M);
        Message::meet(e, sign, x, dx, receiver, G, P, at);
    }
};

}  // namespace molnets
