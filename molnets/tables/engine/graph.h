// The edges of a batch as the passes take them, and the search for them.
//
// The atoms are cut into parts, between samples where that is possible. Every edge has its reverse.
// Inside a part only i < j is kept and stands for both ways: the spline is read once, and no other
// thread writes to either atom. Edges from part to part go one way and are kept twice. Parts
// without such edges are independent: each goes through all of the network by itself.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "threads.h"

namespace molnets {

constexpr int64_t FEW = 64;    // atoms of a sample that are compared with all others
constexpr int64_t STRIP = 4;   // cells along y, so that what neighbours hold stays in the cache
constexpr int64_t CHUNK = 64;  // atoms that a thread searches at a time
constexpr int64_t SMALL_PART = 32;  // atoms: fewer are not worth a task

// Memory that grows and is never filled; large pieces in large pages, where the system has them.
template <class T>
class Buffer {
    T* data = nullptr;
    int64_t capacity = 0;

public:
    Buffer() = default;
    Buffer(const Buffer&) = delete;
    ~Buffer() { std::free(data); }
    T* room(int64_t size) {
        size += 64;  // so that a register may be read from any place
        if (size <= capacity) return data;
        std::free(data);
        data = nullptr, capacity = 0;
        int64_t page = size * sizeof(T) < (1 << 22) ? 64 : 1 << 21;
        int64_t bytes = (size * sizeof(T) * 9 / 8 + page) / page * page;
        data = static_cast<T*>(std::aligned_alloc(page, bytes));
        if (!data) throw std::bad_alloc();
#if defined(__linux__)
        if (page > 64) madvise(data, bytes, MADV_HUGEPAGE);
#endif
        capacity = bytes / sizeof(T);
        return data;
    }
};

// Sort numbers from 0 to num - 1: where each begins, (num + 1), and their order.
inline void sort(const std::vector<int64_t>& keys, int64_t num, std::vector<int64_t>& first,
                 std::vector<int64_t>& order) {
    first.assign(num + 1, 0), order.resize(keys.size());
    for (int64_t key : keys) first[key + 1]++;
    for (int64_t k = 0; k < num; k++) first[k + 1] += first[k];
    std::vector<int64_t> place(first.begin(), first.end() - 1);
    for (size_t n = 0; n < keys.size(); n++) order[place[keys[n]]++] = n;
}

// What was found near the atoms of a chunk, one after the other.
struct Found {
    std::vector<uint32_t> what;
    int64_t size = 0, before = 0, count[2] = {0, 0};

    void ask(int64_t most) {
        if (size + most > int64_t(what.size())) what.resize(2 * (size + most));
    }
    void note(int64_t n, bool is_near) {  // without a branch, which could not be foreseen
        what[size] = uint32_t(n), size += is_near;
    }
    void end(bool both) { count[both] = size - before, before = size; }
};

// Atoms sorted into cells that are at least as wide as the cutoff, sample after sample.
struct Cells {
    std::vector<int64_t> order, cell, start, first;  // `cell` in the new order
    std::vector<std::array<int64_t, 3>> shape;

    static int64_t row(int64_t kx, int64_t ky, const std::array<int64_t, 3>& shape) {
        int64_t begin = ky / STRIP * STRIP;
        return begin * shape[0] + kx * std::min(STRIP, shape[1] - begin) + ky - begin;
    }
    static void column(int64_t row, const std::array<int64_t, 3>& shape, int64_t& kx, int64_t& ky) {
        int64_t begin = row / (STRIP * shape[0]) * STRIP;
        int64_t width = std::min(STRIP, shape[1] - begin), rest = row - begin * shape[0];
        kx = rest / width, ky = begin + rest % width;
    }

    template <class P>
    void sort_atoms(const P* pos, const int64_t* samples, int64_t B, double cutoff) {
        int64_t N = samples[B];
        std::vector<int64_t> keys(N);
        shape.assign(B, {1, 1, 1}), first.assign(B + 1, 0);
        for (int64_t b = 0; b < B; b++) {
            int64_t n = samples[b + 1] - samples[b];
            double low[3], high[3], width = cutoff * (1 + 1e-6);
            for (int k = 0; k < 3; k++) {
                low[k] = std::numeric_limits<double>::infinity(), high[k] = -low[k];
                for (int64_t i = samples[b]; i < samples[b + 1]; i++) {
                    low[k] = std::min<double>(low[k], pos[3 * i + k]);
                    high[k] = std::max<double>(high[k], pos[3 * i + k]);
                }
            }
            for (; n > FEW; width *= 1.26) {  // no more cells than atoms
                double along[3], all = 1;
                for (int k = 0; k < 3; k++)
                    all *= along[k] = std::max(1.0, std::floor((high[k] - low[k]) / width));
                if (!(all <= n)) continue;
                for (int k = 0; k < 3; k++) shape[b][k] = int64_t(along[k]);
                break;
            }
            first[b + 1] = first[b] + shape[b][0] * shape[b][1] * shape[b][2];
            for (int64_t i = samples[b]; i < samples[b + 1]; i++) {
                int64_t k[3];
                for (int a = 0; a < 3; a++)  // compared before it is a whole number: it may be huge
                    k[a] = int64_t(
                        std::min((pos[3 * i + a] - low[a]) / width, double(shape[b][a] - 1)));
                keys[i] = first[b] + row(k[0], k[1], shape[b]) * shape[b][2] + k[2];
            }
        }
        sort(keys, first[B], start, order);
        cell.resize(N);
        for (int64_t n = 0; n < N; n++) cell[n] = keys[order[n]];
    }

    // Call f(begin, end) for the atoms in and around the cell of atom n of sample b.
    template <class F>
    void around(int64_t n, int64_t b, F f) const {
        int64_t at = cell[n] - first[b], cx, cy, cz = at % shape[b][2];
        column(at / shape[b][2], shape[b], cx, cy);
        for (int64_t kx = std::max<int64_t>(cx - 1, 0); kx < std::min(cx + 2, shape[b][0]); kx++)
            for (int64_t ky = std::max<int64_t>(cy - 1, 0); ky < std::min(cy + 2, shape[b][1]);
                 ky++) {
                const int64_t* from = &start[first[b] + row(kx, ky, shape[b]) * shape[b][2]];
                f(from[std::max<int64_t>(cz - 1, 0)], from[std::min(cz + 2, shape[b][2])]);
            }
    }
};

// A list of candidate edges, sorted by receiver, halved inside parts; offsets are r_j + offset -
// r_i.
struct List {
    std::vector<int64_t> order, parts, first;
    std::vector<uint32_t> sender;
    std::vector<double> offset[3];
    bool independent = true, symmetric = true;
    // Of a process's part of a system: the row of each atom and copy, in order, and how many rows.
    std::vector<uint32_t> row;
    int64_t num_rows = 0;
};

template <class R>
class Graph {
    Buffer<uint32_t> whole;
    Buffer<R> real;
    std::vector<double> points[3];
    std::vector<int64_t> sample, part_of;
    Cells cells;

public:
    int64_t num_atoms = 0, num_edges = 0;
    int64_t num_rows = 0;  // of atoms, and of those that are fetched
    double spacing = 1;
    int64_t last_knot = 0;
    std::vector<int64_t> parts, first,
        order;  // of atom i: first[2 i], for both ways up to first[2 i + 1]
    bool independent = true;
    uint32_t *sender = nullptr, *knot = nullptr;
    R *t = nullptr, *d = nullptr, *unit[3] = {nullptr, nullptr, nullptr};

    int64_t num_parts() const { return int64_t(parts.size()) - 1; }

    // Find the edges between atoms closer than the cutoff; false if two are in one place.
    template <class P>
    bool search(const P* pos, const int64_t* samples, int64_t B, double cutoff, int threads) {
        cells.sort_atoms(pos, samples, B, cutoff);
        order = cells.order, num_rows = samples[B];
        independent = cut(samples, B, threads, parts);
        take(pos);
        sample.resize(num_atoms);
        for (int64_t b = 0; b < B; b++)
            std::fill(&sample[samples[b]], &sample[0] + samples[b + 1], b);
        double square = cutoff * cutoff;
        return fill(
            threads, [&](int64_t i, Found& found) { near(i, square, found); },
            [&](int64_t i, int64_t j, double* r) {
                for (int k = 0; k < 3; k++) r[k] = points[k][j] - points[k][i];
                return j;
            });
    }

    // Take those edges of a list that are shorter than the cutoff; pos: null for zeros.
    template <class P>
    bool narrow(const List& list, const P* pos, double cutoff, int threads) {
        parts = list.parts, independent = list.independent, order = list.order;
        num_rows = list.row.empty() ? parts.back() : list.num_rows;
        take(pos);
        auto moved = [&](int64_t i, int64_t e, double* r) {
            int64_t j = list.sender[e];
            for (int k = 0; k < 3; k++) r[k] = points[k][j] - points[k][i] + list.offset[k][e];
            return j;
        };
        auto copied = [&](int64_t i, int64_t e, double* r) {
            int64_t j = list.sender[e];
            for (int k = 0; k < 3; k++) r[k] = points[k][j] - points[k][i];
            return int64_t(list.row[j]);
        };
        if (list.row.empty()) return keep_near(list, cutoff * cutoff, threads, moved);
        return keep_near(list, cutoff * cutoff, threads, copied);
    }

    // Where the parts begin, and whether they end where samples do.
    static bool cut(const int64_t* samples, int64_t B, int threads, std::vector<int64_t>& parts) {
        int64_t N = samples[B], largest = 0,
                size = std::max<int64_t>(SMALL_PART, N / (8 * threads));
        for (int64_t b = 0; b < B; b++) largest = std::max(largest, samples[b + 1] - samples[b]);
        parts.assign(1, 0);
        if (threads == 1 || 2 * largest <= N || N < 4 * SMALL_PART) {
            for (int64_t b = 1; b <= B; b++)
                if (b == B || samples[b] - parts.back() >= size) parts.push_back(samples[b]);
            return true;
        }
        int64_t P = std::max<int64_t>(1, std::min<int64_t>(2 * threads, N / SMALL_PART));
        for (int64_t p = 1; p <= P; p++) parts.push_back(N * p / P);
        return false;
    }

private:
    template <class F>
    bool keep_near(const List& list, double square, int threads, F vector) {
        auto near = [&](int64_t i, Found& found) {
            double r[3];
            for (int both = 1; both >= 0; both--) {
                int64_t begin = list.first[2 * i + 1 - both], end = list.first[2 * i + 2 - both];
                found.ask(end - begin);
                for (int64_t e = begin; e < end; e++) {
                    vector(i, e, r);
                    found.note(e, r[0] * r[0] + r[1] * r[1] + r[2] * r[2] < square);
                }
                found.end(both);
            }
        };
        return fill(threads, near, vector);
    }

    template <class P>
    void take(const P* pos) {
        num_atoms = parts.back();
        for (int k = 0; k < 3; k++) {
            points[k].resize(order.size());
            for (size_t n = 0; n < order.size(); n++)
                points[k][n] = pos ? double(pos[3 * order[n] + k]) : 0.0;
        }
        part_of.resize(num_atoms);
        for (int64_t p = 0; p < num_parts(); p++)
            std::fill(&part_of[parts[p]], &part_of[0] + parts[p + 1], p);
    }

    std::vector<Found> found;

    // Find what is near each atom, those for both ways first, make room, and write the edges.
    template <class F, class G>
    bool fill(int threads, F near, G vector) {
        int64_t num_chunks = (num_atoms + CHUNK - 1) / CHUNK;
        first.resize(2 * num_atoms + 1), found.resize(num_chunks), first[0] = 0;
        auto atoms_of = [&](int64_t chunk, auto body) {
            for (int64_t i = chunk * CHUNK; i < std::min((chunk + 1) * CHUNK, num_atoms); i++)
                body(i);
        };
        Pool::each(num_chunks, threads, [&](int64_t chunk) {
            Found& here = found[chunk];
            here.size = here.before = 0;
            atoms_of(chunk, [&](int64_t i) {
                near(i, here);
                first[2 * i + 1] = here.count[1], first[2 * i + 2] = here.count[0];
            });
        });
        for (int64_t n = 0; n < 2 * num_atoms; n++) first[n + 1] += first[n];
        int64_t E = num_edges = first[2 * num_atoms], stride = (E + 31) / 16 * 16;
        sender = whole.room(2 * stride), knot = sender + stride;
        R* numbers = real.room(5 * stride);
        t = numbers, d = t + stride;
        for (int k = 0; k < 3; k++) unit[k] = d + (k + 1) * stride;
        std::atomic<bool> distinct{true};
        Pool::each(num_chunks, threads, [&](int64_t chunk) {
            const uint32_t* what = found[chunk].what.data();
            bool ok = true;
            atoms_of(chunk, [&](int64_t i) {
                for (int64_t e = first[2 * i]; e < first[2 * i + 2]; e++) {
                    double r[3];
                    sender[e] = vector(i, *what++, r);
                    ok &= describe(e, r);
                }
            });
            if (!ok) distinct = false;
        });
        for (int64_t e = E; e < stride; e++) t[e] = 0;
        return distinct;
    }

    // Write the length, the interval and the direction of an edge; return whether it has a length.
    bool describe(int64_t e, const double* r) {
        double length = std::sqrt(r[0] * r[0] + r[1] * r[1] + r[2] * r[2]),
               place = length / spacing;
        int32_t k = std::min(int32_t(place), int32_t(last_knot));
        d[e] = length, knot[e] = k, t[e] = place - k;
        for (int axis = 0; axis < 3; axis++) unit[axis][e] = r[axis] / length;
        return length > 0;
    }

    // Note the atoms near i whose edges to i are kept.
    void near(int64_t i, double square, Found& found) const {
        const double *x = points[0].data(), *y = points[1].data(), *z = points[2].data();
        const double x_i = x[i], y_i = y[i], z_i = z[i];
        const int64_t lo = parts[part_of[i]], hi = parts[part_of[i] + 1];
        auto range = [&](int64_t begin, int64_t end) {
            if (begin >= end) return;
            found.ask(end - begin);
            for (int64_t j = begin; j < end; j++) {
                double dx = x[j] - x_i, dy = y[j] - y_i, dz = z[j] - z_i;
                found.note(j, dx * dx + dy * dy + dz * dz < square);
            }
        };
        for (int both = 1; both >= 0; both--) {
            cells.around(i, sample[i], [&](int64_t begin, int64_t end) {
                if (both)
                    range(std::max(begin, i + 1), std::min(end, hi));
                else
                    range(begin, std::min(end, lo)), range(std::max(begin, hi), end);
            });
            found.end(both);
        }
    }
};

// A number for an edge and its vector, so that equal sums mean equal sets of edges.
inline uint64_t scramble(uint64_t i, uint64_t j, double x, double y, double z) {
    auto mix = [](uint64_t h, uint64_t v) {
        h = (h ^ v) * 0x9E3779B97F4A7C15u;
        return h ^ h >> 29;
    };
    double vector[3] = {x + 0.0, y + 0.0, z + 0.0};  // -0 becomes 0
    uint64_t h = mix(mix(1, i), j);
    for (double a : vector) {
        uint64_t bits;
        std::memcpy(&bits, &a, sizeof a);
        h = mix(h, bits);
    }
    return h;
}

// Sort a list of directed edges; `order` gives the atoms a new order, `offset` has one row for all
// or one each.
template <class P>
void make_list(List& list, int64_t E, const int64_t* senders, const int64_t* receivers,
               const P* offset, bool one_offset) {
    int64_t N = list.order.size();
    std::vector<int64_t> place(N), part(N), keys, kept, by_key;
    for (int64_t n = 0; n < N; n++) place[list.order[n]] = n;
    for (size_t p = 0; p + 1 < list.parts.size(); p++)
        std::fill(part.begin() + list.parts[p], part.begin() + list.parts[p + 1], p);
    uint64_t forth = 0, back = 0;
    for (int64_t e = 0; e < E; e++) {
        bool known =
            std::min(senders[e], receivers[e]) >= 0 && std::max(senders[e], receivers[e]) < N;
        if (!known) {  // an atom that is not there has no way back either
            list.symmetric = false;
            return;
        }
        int64_t j = place[senders[e]], i = place[receivers[e]];
        const P* o = offset + (one_offset ? 0 : 3 * e);
        forth += scramble(i, j, o[0], o[1], o[2]), back += scramble(j, i, -o[0], -o[1], -o[2]);
        bool one_way = part[i] != part[j] || i == j;  // an atom and its own image: both are there
        list.independent &= part[i] == part[j];
        if (!one_way && j < i) continue;
        keys.push_back(2 * i + one_way), kept.push_back(e);
    }
    list.symmetric = forth == back;
    sort(keys, 2 * N, list.first, by_key);
    list.sender.resize(kept.size());
    for (auto& axis : list.offset) axis.resize(kept.size());
    for (size_t n = 0; n < kept.size(); n++) {
        int64_t e = kept[by_key[n]];
        list.sender[n] = place[senders[e]];
        for (int k = 0; k < 3; k++) list.offset[k][n] = offset[(one_offset ? 0 : 3 * e) + k];
    }
}

}  // namespace molnets
