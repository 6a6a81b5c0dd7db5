// What neighbours tell each other: the formulas of one edge; here of scalars and vectors, in
// tensors.h of matrices.
//
// A message is linear in filters W at |r_ij|, a row of M numbers for each of its channels. Its
// class says what an atom sends (In) and receives (Out), a register's width at a time, and for an
// edge from j to i
//
//     deliver     y_i += message,                             or the tangent of that
//     give_back   what the gradients of y_i come to for those of x_j, d and u
//     meet        what multiplies W, and ∂W/∂d ḋ, in J
//
// `sign` is -1 for the edge from i to j, whose unit vector is -u. Of Vectors<C> the first C of
//
//     s_i += a_j[0] W[0];      v_i += a_j[1] W[1] u;      v_i += v_j W[2]
//
// are there: SchNet has C = 1, the first block of PaiNN 2, its others 3.

#pragma once

#include "dense.h"
#include "splines.h"

namespace molnets {

// What an atom has in each array, from one column on: pointers to the rows of its parts.
template <class R>
struct Row {
    R* part[3];
};
template <class R>
struct Rows {
    Row<R> x[2], g[2];  // numbers and tangents; gradients G and P
};
template <class R>
struct Parts {
    Quantity<R> part[3];

    Rows<R> of(int64_t i) const {
        Rows<R> rows;
        for (int p = 0; p < 3; p++)
            for (int m = 0; m < 2; m++) {
                rows.x[m].part[p] = part[p].x[m] + i * part[p].stride;
                rows.g[m].part[p] = part[p].g[m] + i * part[p].stride;
            }
        return rows;
    }
};

// One edge: its interval, its weights, its direction and the rates of both.
template <class R>
struct Edge {
    int64_t knot;
    R w[ORDER], dw[ORDER], u[3], du[3];
};
// W and ∂W/∂d, times ḋ where tangents are asked for, of all channels.
template <class R, int CHANNELS>
struct Filter {
    Vec<R> w[CHANNELS], dw[CHANNELS];
};

template <class R, int CHANNELS_>
struct Vectors {
    static constexpr int CHANNELS = CHANNELS_;
    static constexpr bool DIRECTED = CHANNELS > 1;      // depends on u
    static constexpr bool OF_PAIRS = false;             // depends on what the receiver sends
    static constexpr int WIDTH = CHANNELS > 1 ? 1 : 4;  // registers of columns at a time
    using Filter = molnets::Filter<R, CHANNELS>;
    using Edge = molnets::Edge<R>;

    struct In {
        Vec<R> a[CHANNELS > 1 ? 2 : 1], v[CHANNELS > 2 ? 3 : 1];

        static In get(const Row<R>& row, int64_t f, int64_t M) {
            In x{};
            for (int c = 0; c < (CHANNELS > 1 ? 2 : 1); c++) x.a[c] = load(row.part[0] + c * M + f);
            for (int k = 0; CHANNELS > 2 && k < 3; k++) x.v[k] = load(row.part[1] + k * M + f);
            return x;
        }
        void put(const Row<R>& row, int64_t f, int64_t M) const {
            for (int c = 0; c < (CHANNELS > 1 ? 2 : 1); c++) store(row.part[0] + c * M + f, a[c]);
            for (int k = 0; CHANNELS > 2 && k < 3; k++) store(row.part[1] + k * M + f, v[k]);
        }
    };
    struct Out {
        Vec<R> s, v[CHANNELS > 1 ? 3 : 1];

        static Out get(const Row<R>& row, int64_t f, int64_t M) {
            Out y{};
            y.s = load(row.part[0] + f);
            for (int k = 0; CHANNELS > 1 && k < 3; k++) y.v[k] = load(row.part[1] + k * M + f);
            return y;
        }
        void put(const Row<R>& row, int64_t f, int64_t M) const {
            store(row.part[0] + f, s);
            for (int k = 0; CHANNELS > 1 && k < 3; k++) store(row.part[1] + k * M + f, v[k]);
        }
    };

    template <Mode MODE>
    static void deliver(const Edge& e, R sign, const In& x, const In& dx, const In&,
                        const Filter& at, Out& y) {
        if (MODE == VALUE)
            y.s += x.a[0] * at.w[0];
        else
            y.s += dx.a[0] * at.w[0] + x.a[0] * at.dw[0];
        if constexpr (CHANNELS > 1) {
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

    template <Mode MODE, bool SENT>
    static void give_back(const Edge& e, R sign, const In& x, const In&, const Out& G, const Out& P,
                          const Filter& at, In& g_x, In&, Vec<R>* pulls) {
        if (MODE == VALUE) pulls[0] += G.s * (x.a[0] * at.dw[0]);
        if (SENT) g_x.a[0] += MODE == VALUE ? G.s * at.w[0] : P.s * at.w[0] + G.s * at.dw[0];
        if constexpr (CHANNELS > 1) {
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

    static void meet(const Edge& e, R sign, const In& x, const In& dx, const In&, const Out& G,
                     const Out& P, Filter& at) {
        at.w[0] += P.s * x.a[0] + G.s * dx.a[0], at.dw[0] += G.s * x.a[0];
        if constexpr (CHANNELS > 1) {
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
