// Sums over neighbours whose filters are splines of the distance, forward and back.
//
// An atom sends `a`, one row of M numbers or two, and with three channels `v`, three rows more; it
// receives M numbers s and, with more than one channel, three rows more, a vector. With u the unit
// vector from i to j and W the filters at |r_ij|, the message from j to i is
//
//     s_i += a_j[0] W[0];      v_i += a_j[1] W[1] u  +  v_j W[2]
//
// SchNet has the first channel, the first block of PaiNN two, its others all three.
//
// Splines: of degree ORDER, with ORDER - 1 continuous derivatives. In terms of B-spline
// coefficients c and their differences D, which keep their digits in single precision,
//
//     W = c[k] + Σ_p w_p D[k + p],      p = 1 … ORDER,      k the knot below the distance.
//
// The numbers of one atom that its edges share stay in registers, a group of columns at a time,
// while all edges pass by. A table goes by channels, then by groups, each with rows of c and D side
// by side: what an edge reads is one piece of memory.

#pragma once

#include "dense.h"
#include "graph.h"

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

// What an atom has in each array, from one column on: pointers to rows.
template <class R>
struct Row {
    R *a, *v;
};
template <class R>
struct Rows {
    Row<R> x[2], g[2];  // numbers and tangents; gradients G and P
};

// A register's width of what is sent, and of what is received: numbers or gradients.
template <class R, int CHANNELS>
struct Sent {
    Vec<R> a[CHANNELS > 1 ? 2 : 1], v[CHANNELS > 2 ? 3 : 1];

    static Sent get(const Row<R>& row, int64_t f, int64_t M) {
        Sent x{};
        for (int c = 0; c < (CHANNELS > 1 ? 2 : 1); c++) x.a[c] = load(row.a + c * M + f);
        for (int k = 0; CHANNELS > 2 && k < 3; k++) x.v[k] = load(row.v + k * M + f);
        return x;
    }
    void put(const Row<R>& row, int64_t f, int64_t M) const {
        for (int c = 0; c < (CHANNELS > 1 ? 2 : 1); c++) store(row.a + c * M + f, a[c]);
        for (int k = 0; CHANNELS > 2 && k < 3; k++) store(row.v + k * M + f, v[k]);
    }
};
template <class R, int CHANNELS>
struct Received {
    Vec<R> s, v[CHANNELS > 1 ? 3 : 1];

    static Received get(const Row<R>& row, int64_t f, int64_t M) {
        Received y{};
        y.s = load(row.a + f);
        for (int k = 0; CHANNELS > 1 && k < 3; k++) y.v[k] = load(row.v + k * M + f);
        return y;
    }
    void put(const Row<R>& row, int64_t f, int64_t M) const {
        store(row.a + f, s);
        for (int k = 0; CHANNELS > 1 && k < 3; k++) store(row.v + k * M + f, v[k]);
    }
};

// The columns of M that stay in registers together: as many as fit, then one register's width each.
template <class R, int CHANNELS>
constexpr int GROUP = (CHANNELS > 1 ? 1 : 4) * LANES<R>;
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

template <class R, int CHANNELS>
struct Convolution {
    const Graph<R>& graph;
    const R* table;
    int64_t M, table_rows;
    Quantity<R> sent, sent_vectors, received, received_vectors;
    R* pull;        // ∂E/∂d of each edge, and with vectors ∂E/∂u: (1 or 4, E)
    const R* rate;  // ḋ of each edge, and with vectors u̇: (1 or 4, E)

    static constexpr bool VECTORS = CHANNELS > 1;
    static constexpr int W = LANES<R>, U = GROUP<R, CHANNELS> / W;
    using In = Sent<R, CHANNELS>;
    using Out = Received<R, CHANNELS>;

    Rows<R> sender(int64_t i) const { return rows(sent, sent_vectors, i); }
    Rows<R> receiver(int64_t i) const { return rows(received, received_vectors, i); }
    static Rows<R> rows(const Quantity<R>& a, const Quantity<R>& v, int64_t i) {
        Rows<R> r;
        for (int m = 0; m < 2; m++) {
            r.x[m] = {a.x[m] + i * a.stride, v.x[m] + i * v.stride};
            r.g[m] = {a.g[m] + i * a.stride, v.g[m] + i * v.stride};
        }
        return r;
    }

    // One edge: its interval, its weights, its direction and the rates of both.
    struct Edge {
        int64_t knot;
        R w[ORDER], dw[ORDER], u[3], du[3];
    };
    // W and ∂W/∂d, times ḋ where tangents are asked for, of all channels.
    struct Filter {
        Vec<R> w[CHANNELS], dw[CHANNELS];
    };

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
                for (int k = 0; VECTORS && k < 3; k++) {
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

    // Add to y what comes from x, or the tangent of that; sign turns the direction round.
    template <Mode MODE>
    static void deliver(const Edge& e, R sign, const In& x, const In& dx, const Filter& at,
                        Out& y) {
        if (MODE == VALUE)
            y.s += x.a[0] * at.w[0];
        else
            y.s += dx.a[0] * at.w[0] + x.a[0] * at.dw[0];
        if constexpr (VECTORS) {
            Vec<R> turned = x.a[1] * at.w[1] * sign, along = turned;
            if (MODE == TANGENT) along = (dx.a[1] * at.w[1] + x.a[1] * at.dw[1]) * sign;
            for (int k = 0; k < 3; k++) {
                y.v[k] += along * e.u[k];
                if (MODE == TANGENT) y.v[k] += turned * e.du[k];
                if constexpr (CHANNELS > 2) {
                    if (MODE == VALUE)
                        y.v[k] += x.v[k] * at.w[2];
                    else
                        y.v[k] += dx.v[k] * at.w[2] + x.v[k] * at.dw[2];
                }
            }
        }
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
            Rows<R> from_i = sender(i), to_i = receiver(i);
            for (int n = 0; n < N; n++) {
                x_i[n] = In::get(from_i.x[VALUE], f + n * W, M),
                y_i[n] = Out::get(to_i.x[MODE], f + n * W, M);
                if (MODE == TANGENT) dx_i[n] = In::get(from_i.x[TANGENT], f + n * W, M);
            }
            const int64_t both = graph.first[2 * i + 1];
            walk<MODE>(i, [&](const Edge& e, int64_t edge, int64_t j) {
                Rows<R> from_j = sender(j), to_j = receiver(j);
                for (int n = 0; n < N; n++) {
                    Filter at = filter<N>(e, f, n, true, MODE == TANGENT);
                    In dx_j{}, x_j = In::get(from_j.x[VALUE], f + n * W, M);
                    if (MODE == TANGENT) dx_j = In::get(from_j.x[TANGENT], f + n * W, M);
                    deliver<MODE>(e, 1, x_j, dx_j, at, y_i[n]);
                    if (edge >= both) continue;
                    Out y_j = Out::get(to_j.x[MODE], f + n * W, M);
                    deliver<MODE>(e, -1, x_i[n], dx_i[n], at, y_j);
                    y_j.put(to_j.x[MODE], f + n * W, M);
                }
            });
            for (int n = 0; n < N; n++) y_i[n].put(to_i.x[MODE], f + n * W, M);
        }
    }

    // Add to g_x what the gradients G (and P) of what was received come to; VALUE: to the pulls
    // too.
    template <Mode MODE, bool SENT>
    static void give_back(const Edge& e, R sign, const In& x, const Out& G, const Out& P,
                          const Filter& at, In& g_x, Vec<R>* pulls) {
        if (MODE == VALUE) pulls[0] += G.s * (x.a[0] * at.dw[0]);
        if (SENT) g_x.a[0] += MODE == VALUE ? G.s * at.w[0] : P.s * at.w[0] + G.s * at.dw[0];
        if constexpr (VECTORS) {
            Vec<R> along = {}, rates = {};
            for (int k = 0; k < 3; k++) {
                along += G.v[k] * (sign * e.u[k]);
                if (MODE == TANGENT) rates += P.v[k] * (sign * e.u[k]) + G.v[k] * (sign * e.du[k]);
                if (MODE == VALUE) pulls[k + 1] += G.v[k] * (x.a[1] * at.w[1] * sign);
                if constexpr (CHANNELS > 2) {
                    if (SENT)
                        g_x.v[k] +=
                            MODE == VALUE ? G.v[k] * at.w[2] : P.v[k] * at.w[2] + G.v[k] * at.dw[2];
                    if (MODE == VALUE) pulls[0] += G.v[k] * x.v[k] * at.dw[2];
                }
            }
            if (MODE == VALUE) pulls[0] += along * x.a[1] * at.dw[1];
            if (SENT)
                g_x.a[1] += MODE == VALUE ? along * at.w[1] : rates * at.w[1] + along * at.dw[1];
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
            Rows<R> from_i = sender(i), to_i = receiver(i);
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
                Rows<R> from_j = sender(j), to_j = receiver(j);
                Vec<R> pulls[VECTORS ? 4 : 1] = {};
                for (int n = 0; n < N; n++) {
                    Filter at = filter<N>(e, f, n, SENT || VECTORS, true);
                    In x_j{}, g_j{};
                    Out G_j = Out::get(to_j.g[VALUE], f + n * W, M), P_j{};
                    if (MODE == TANGENT)
                        P_j = Out::get(to_j.g[TANGENT], f + n * W, M);
                    else
                        x_j = In::get(from_j.x[VALUE], f + n * W, M);
                    give_back<MODE, SENT>(e, -1, x_i[n], G_j, P_j, at, g_i[n], pulls);
                    if (!SENT || edge >= both) {
                        give_back<MODE, false>(e, 1, x_j, G_i[n], P_i[n], at, g_j, pulls);
                        continue;
                    }
                    g_j = In::get(from_j.g[MODE], f + n * W, M);
                    give_back<MODE, true>(e, 1, x_j, G_i[n], P_i[n], at, g_j, pulls);
                    g_j.put(from_j.g[MODE], f + n * W, M);
                }
                for (int k = 0; MODE == VALUE && k < (VECTORS ? 4 : 1); k++)
                    pull[k * graph.num_edges + edge] += sum<R>(pulls[k]);
            });
            for (int n = 0; SENT && n < N; n++) g_i[n].put(from_i.g[MODE], f + n * W, M);
        }
    }

    // Add ∂J/∂c and ∂J/∂D of the edges of atoms lo to hi to `G_T`, as a table.
    void gradient_of_table(int64_t lo, int64_t hi, R* G_T) const {
        for (int64_t i = lo; i < hi; i++) {
            Rows<R> from_i = sender(i), to_i = receiver(i);
            const int64_t both = graph.first[2 * i + 1];
            walk<TANGENT>(i, [&](const Edge& e, int64_t edge, int64_t j) {
                Rows<R> from_j = sender(j), to_j = receiver(j);
                R share =
                    edge < both ? R(1) : R(0.5);  // of an edge from part to part both have one
                for (int64_t f = 0; f < M; f += W) {
                    Filter G{};  // what W and ∂W/∂d ḋ are multiplied with in J
                    meet(e, 1, from_j, to_i, f, G);
                    meet(e, -1, from_i, to_j, f, G);
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
    void meet(const Edge& e, R sign, const Rows<R>& from, const Rows<R>& to, int64_t f,
              Filter& at) const {
        In x = In::get(from.x[VALUE], f, M), dx = In::get(from.x[TANGENT], f, M);
        Out G = Out::get(to.g[VALUE], f, M), P = Out::get(to.g[TANGENT], f, M);
        at.w[0] += P.s * x.a[0] + G.s * dx.a[0], at.dw[0] += G.s * x.a[0];
        if constexpr (VECTORS) {
            Vec<R> along = {}, rates = {};
            for (int k = 0; k < 3; k++) {
                along += G.v[k] * (sign * e.u[k]);
                rates += P.v[k] * (sign * e.u[k]) + G.v[k] * (sign * e.du[k]);
                if constexpr (CHANNELS > 2)
                    at.w[2] += P.v[k] * x.v[k] + G.v[k] * dx.v[k], at.dw[2] += G.v[k] * x.v[k];
            }
            at.w[1] += rates * x.a[1] + along * dx.a[1], at.dw[1] += along * x.a[1];
        }
    }
};

}  // namespace molnets
