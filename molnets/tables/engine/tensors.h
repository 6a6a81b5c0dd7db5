// 3 x 3 matrices of atoms: what their neighbours tell each other, and products of them.
//
// A matrix is nine numbers: one of its trace, three of its antisymmetric part, five of its
// symmetric part without a trace, each along one of nine matrices B_k that are orthonormal: tr(B_kᵀ
// B_l) = δ. An atom keeps the three parts, of one, three and five rows, in three arrays.

#pragma once

#include "messages.h"

namespace molnets {

constexpr int PART_OF[9] = {0, 1, 1, 1, 2, 2, 2, 2, 2}, ROW_OF[9] = {0, 0, 1, 2, 0, 1, 2, 3, 4},
              ROWS_OF[3] = {1, 3, 5};
constexpr double ROOT_2 = 1.4142135623730951, ROOT_3 = 1.7320508075688772,
                 ROOT_6 = 2.449489742783178;

// Nine numbers of T, a register's width or its dual each, of three parts or as a matrix by rows.
template <class T>
struct Nine {
    T c[9];
};

template <class R, class T>
Nine<T> matrix_of(const Nine<T>& x) {
    const R over_2 = R(1 / ROOT_2), over_6 = R(1 / ROOT_6);
    const auto& c = x.c;
    T trace = c[0] * R(1 / ROOT_3), zz = c[5] * over_6, plane = trace - zz;
    T difference = c[4] * over_2, xy = c[6] * over_2, xz = c[7] * over_2, yz = c[8] * over_2;
    T about_x = c[1] * over_2, about_y = c[2] * over_2, about_z = c[3] * over_2;
    return {{plane + difference, xy - about_z, xz + about_y,  //
             xy + about_z, plane - difference, yz - about_x,  //
             xz - about_y, yz + about_x, trace + zz + zz}};
}
// The numbers along the nine matrices: the way back of the above, and its inverse.
template <class R, class T>
Nine<T> parts_of(const Nine<T>& m) {
    const R over_2 = R(1 / ROOT_2), over_6 = R(1 / ROOT_6);
    const auto& c = m.c;
    T plane = c[0] + c[4];
    return {{(plane + c[8]) * R(1 / ROOT_3), (c[7] - c[5]) * over_2, (c[2] - c[6]) * over_2,
             (c[3] - c[1]) * over_2, (c[0] - c[4]) * over_2, (c[8] + c[8] - plane) * over_6,
             (c[1] + c[3]) * over_2, (c[2] + c[6]) * over_2, (c[5] + c[7]) * over_2}};
}
template <class T>
Nine<T> turned(const Nine<T>& a) {
    const auto& c = a.c;
    return {{c[0], c[3], c[6], c[1], c[4], c[7], c[2], c[5], c[8]}};
}
// a b + c d, of matrices.
template <class T>
Nine<T> products(const Nine<T>& a, const Nine<T>& b, const Nine<T>& c, const Nine<T>& d) {
    Nine<T> y;
    for (int m = 0; m < 3; m++)
        for (int n = 0; n < 3; n++) {
            T total = a.c[3 * m] * b.c[n] + c.c[3 * m] * d.c[n];
            for (int k = 1; k < 3; k++)
                total = total + a.c[3 * m + k] * b.c[3 * k + n] + c.c[3 * m + k] * d.c[3 * k + n];
            y.c[3 * m + n] = total;
        }
    return y;
}
template <class T>
Nine<T> product(const Nine<T>& a, const Nine<T>& b) {
    Nine<T> y;
    for (int m = 0; m < 3; m++)
        for (int n = 0; n < 3; n++)
            y.c[3 * m + n] =
                a.c[3 * m] * b.c[n] + a.c[3 * m + 1] * b.c[3 + n] + a.c[3 * m + 2] * b.c[6 + n];
    return y;
}
template <class T>
T dot(const Nine<T>& a, const Nine<T>& b) {
    T total = a.c[0] * b.c[0];
    for (int k = 1; k < 9; k++) total = total + a.c[k] * b.c[k];
    return total;
}
// x / (|x|² + 1), and what its gradient comes to for x.
template <class R, class T>
Nine<T> bounded(const Nine<T>& x) {
    T r = R(1) / (dot(x, x) + R(1));
    Nine<T> y;
    for (int k = 0; k < 9; k++) y.c[k] = r * x.c[k];
    return y;
}
template <class R, class T>
Nine<T> bounded_back(const Nine<T>& x, const Nine<T>& g) {
    T r = R(1) / (dot(x, x) + R(1)), along = R(2) * r * r * dot(x, g);
    Nine<T> g_x;
    for (int k = 0; k < 9; k++) g_x.c[k] = r * g.c[k] - along * x.c[k];
    return g_x;
}

// A register's width of a matrix, of an atom's three arrays.
template <class R>
struct Matrix : Nine<Vec<R>> {
    static Matrix get(const Row<R>& row, int64_t f, int64_t M) {
        Matrix x;
        for (int k = 0; k < 9; k++) x.c[k] = load(row.part[PART_OF[k]] + ROW_OF[k] * M + f);
        return x;
    }
    void put(const Row<R>& row, int64_t f, int64_t M) const {
        for (int k = 0; k < 9; k++) store(row.part[PART_OF[k]] + ROW_OF[k] * M + f, this->c[k]);
    }
};

// M_i += Σ_k W[part of k] Y_jk B_k: as messages.h says.
template <class R>
struct Matrices {
    static constexpr int CHANNELS = 3, WIDTH = 1;
    static constexpr bool DIRECTED = false, OF_PAIRS = false;
    using Filter = molnets::Filter<R, CHANNELS>;
    using Edge = molnets::Edge<R>;
    using In = Matrix<R>;
    using Out = Matrix<R>;

    template <Mode MODE>
    static void deliver(const Edge&, R, const In& x, const In& dx, const In&, const Filter& at,
                        Out& y) {
        for (int k = 0; k < 9; k++) {
            const int c = PART_OF[k];
            if (MODE == VALUE)
                y.c[k] += x.c[k] * at.w[c];
            else
                y.c[k] += dx.c[k] * at.w[c] + x.c[k] * at.dw[c];
        }
    }
    template <Mode MODE, bool SENT>
    static void give_back(const Edge&, R, const In& x, const In&, const Out& G, const Out& P,
                          const Filter& at, In& g_x, In&, Vec<R>* pulls) {
        for (int k = 0; k < 9; k++) {
            const int c = PART_OF[k];
            if (MODE == VALUE) pulls[0] += G.c[k] * x.c[k] * at.dw[c];
            if (SENT)
                g_x.c[k] += MODE == VALUE ? G.c[k] * at.w[c] : P.c[k] * at.w[c] + G.c[k] * at.dw[c];
        }
    }
    static void meet(const Edge&, R, const In& x, const In& dx, const In&, const Out& G,
                     const Out& P, Filter& at) {
        for (int k = 0; k < 9; k++) {
            const int c = PART_OF[k];
            at.w[c] += P.c[k] * x.c[k] + G.c[k] * dx.c[k], at.dw[c] += G.c[k] * x.c[k];
        }
    }
};

// X_i += (p_i + q_j) Σ_k W[part of k] y_k(u) B_k, with δ, [u]ₓ and u uᵀ - δ/3 along B: as
// messages.h says. Neither p nor q moves with the atoms.
template <class R>
struct Surroundings {
    static constexpr int CHANNELS = 3, WIDTH = 1;
    static constexpr bool DIRECTED = true, OF_PAIRS = true;
    using Filter = molnets::Filter<R, CHANNELS>;
    using Edge = molnets::Edge<R>;
    using Out = Matrix<R>;

    struct In {
        Vec<R> p, q;

        static In get(const Row<R>& row, int64_t f, int64_t) {
            return {load(row.part[0] + f), load(row.part[1] + f)};
        }
        void put(const Row<R>& row, int64_t f, int64_t) const {
            store(row.part[0] + f, p), store(row.part[1] + f, q);
        }
    };
    // y(u) for the direction sign u, and its rate.
    struct Directions {
        R y[9], rate[9];

        template <Mode MODE>
        static Directions of(const Edge& e, R sign) {
            const R over_2 = R(1 / ROOT_2), over_6 = R(1 / ROOT_6), *u = e.u, *du = e.du;
            Directions at;
            at.y[0] = R(ROOT_3);
            for (int k = 0; k < 3; k++) at.y[1 + k] = R(ROOT_2) * sign * u[k];
            at.y[4] = (u[0] * u[0] - u[1] * u[1]) * over_2;
            at.y[5] = (2 * u[2] * u[2] - u[0] * u[0] - u[1] * u[1]) * over_6;
            at.y[6] = R(ROOT_2) * u[0] * u[1], at.y[7] = R(ROOT_2) * u[0] * u[2],
            at.y[8] = R(ROOT_2) * u[1] * u[2];
            if (MODE == VALUE) return at;
            at.rate[0] = 0;
            for (int k = 0; k < 3; k++) at.rate[1 + k] = R(ROOT_2) * sign * du[k];
            at.rate[4] = 2 * (u[0] * du[0] - u[1] * du[1]) * over_2;
            at.rate[5] = 2 * (2 * u[2] * du[2] - u[0] * du[0] - u[1] * du[1]) * over_6;
            at.rate[6] = R(ROOT_2) * (u[0] * du[1] + du[0] * u[1]);
            at.rate[7] = R(ROOT_2) * (u[0] * du[2] + du[0] * u[2]);
            at.rate[8] = R(ROOT_2) * (u[1] * du[2] + du[1] * u[2]);
            return at;
        }
    };

    template <Mode MODE>
    static void deliver(const Edge& e, R sign, const In& x, const In&, const In& receiver,
                        const Filter& at, Out& y) {
        auto direction = Directions::template of<MODE>(e, sign);
        Vec<R> pair = receiver.p + x.q;
        for (int k = 0; k < 9; k++) {
            const int c = PART_OF[k];
            if (MODE == VALUE)
                y.c[k] += pair * at.w[c] * direction.y[k];
            else
                y.c[k] += pair * (at.dw[c] * direction.y[k] + at.w[c] * direction.rate[k]);
        }
    }
    template <Mode MODE, bool SENT>
    static void give_back(const Edge& e, R sign, const In& x, const In& receiver, const Out& G,
                          const Out& P, const Filter& at, In& g_x, In& g_receiver, Vec<R>* pulls) {
        auto direction = Directions::template of<MODE>(e, sign);
        Vec<R> along[3] = {}, rates[3] = {}, g = {};
        for (int k = 0; k < 9; k++) {
            along[PART_OF[k]] += G.c[k] * direction.y[k];
            if (MODE == TANGENT)
                rates[PART_OF[k]] += P.c[k] * direction.y[k] + G.c[k] * direction.rate[k];
        }
        for (int c = 0; SENT && c < 3; c++)
            g += MODE == VALUE ? along[c] * at.w[c] : rates[c] * at.w[c] + along[c] * at.dw[c];
        if (SENT) g_x.q += g, g_receiver.p += g;
        if (MODE == TANGENT) return;
        Vec<R> pair = receiver.p + x.q, of_u[3];
        for (int c = 0; c < 3; c++) pulls[0] += pair * along[c] * at.dw[c];
        turn(e.u, G, of_u);
        for (int k = 0; k < 3; k++)
            pulls[1 + k] += pair * (at.w[1] * G.c[1 + k] * (R(ROOT_2) * sign) + at.w[2] * of_u[k]);
    }
    // ∂/∂u of Σ G_k y_k over the symmetric part.
    static void turn(const R* u, const Out& G, Vec<R>* of_u) {
        const R over_6 = R(1 / ROOT_6);
        const auto& c = G.c;
        of_u[0] = R(ROOT_2) * (c[4] * u[0] + c[6] * u[1] + c[7] * u[2]) - 2 * over_6 * u[0] * c[5];
        of_u[1] = R(ROOT_2) * (c[6] * u[0] - c[4] * u[1] + c[8] * u[2]) - 2 * over_6 * u[1] * c[5];
        of_u[2] = R(ROOT_2) * (c[7] * u[0] + c[8] * u[1]) + 4 * over_6 * u[2] * c[5];
    }
    static void meet(const Edge& e, R sign, const In& x, const In&, const In& receiver,
                     const Out& G, const Out& P, Filter& at) {
        auto direction = Directions::template of<TANGENT>(e, sign);
        Vec<R> pair = receiver.p + x.q;
        for (int k = 0; k < 9; k++) {
            const int c = PART_OF[k];
            at.w[c] += pair * (P.c[k] * direction.y[k] + G.c[k] * direction.rate[k]);
            at.dw[c] += pair * (G.c[k] * direction.y[k]);
        }
    }
};

}  // namespace molnets
