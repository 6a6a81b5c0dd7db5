// One process's part of a system that several share: atoms of its own, and copies of all near by.
//
// A copy has a place of its own. What it sends is that of its atom: a row of this process, where it
// is an image, or one behind them that is fetched. Between own atoms of one part an edge stands for
// both ways, also if it leads to an image; those from others' atoms go one way, here and there.

#pragma once

#include "graph.h"

namespace molnets {

class Domain {
    List& list;
    const double* pos;
    const int64_t* tags;
    const double square;
    Cells cells;
    std::vector<int64_t> place, own, part;  // in the list; of its own atoms: in the cells, part

public:
    // Of all edges from i to j less that from j to i, as one number: 0 in the sum over processes,
    // unless one of both does not see the other.
    std::atomic<uint64_t> one_sided{0};

    // Of `num_points` atoms the first N are own ones, the others copies, of the own atom `image`
    // or, where that is negative, of others' ones. The latter's rows are still to be given. An atom
    // and its copies have one tag.
    Domain(List& list, const double* pos, const int64_t* tags, int64_t N, int64_t num_points,
           const int64_t* image, double reach, int threads)
        : list(list), pos(pos), tags(tags), square(reach * reach), place(num_points), part(N) {
        const int64_t all[2] = {0, num_points}, atoms[2] = {0, N};
        cells.sort_atoms(pos, all, 1, reach);
        for (int64_t n = 0; n < num_points; n++)
            if (cells.order[n] < N) list.order.push_back(cells.order[n]), own.push_back(n);
        for (int64_t n = N; n < num_points; n++) list.order.push_back(n);
        for (int64_t n = 0; n < num_points; n++) place[list.order[n]] = n;
        Graph<double>::cut(atoms, 1, threads, list.parts);
        for (size_t p = 0; p + 1 < list.parts.size(); p++)
            std::fill(part.begin() + list.parts[p], part.begin() + list.parts[p + 1], p);
        list.row.resize(num_points), list.num_rows = N;
        for (int64_t n = 0; n < num_points; n++)
            list.row[n] = n < N ? n : image[n - N] < 0 ? num_points : place[image[n - N]];
        search(N, threads);
    }

private:
    void search(int64_t N, int threads) {
        std::vector<Found> found((N + CHUNK - 1) / CHUNK);
        std::atomic<bool> independent{true};
        list.first.assign(2 * N + 1, 0);
        Pool::each(found.size(), threads, [&](int64_t chunk) {
            Found& here = found[chunk];
            for (int64_t i = chunk * CHUNK; i < std::min((chunk + 1) * CHUNK, N); i++) {
                if (!near(i, here)) independent = false;
                list.first[2 * i + 1] = here.count[1], list.first[2 * i + 2] = here.count[0];
            }
        });
        for (int64_t n = 0; n < 2 * N; n++) list.first[n + 1] += list.first[n];
        for (const Found& some : found)
            list.sender.insert(list.sender.end(), some.what.begin(), some.what.begin() + some.size);
        list.independent = independent;
    }

    // Note what is near own atom i and kept with it; return whether all of that is in its part.
    bool near(int64_t i, Found& found) {
        const double* x_i = pos + 3 * list.order[i];
        const int64_t N = own.size(), tag_i = tags[list.order[i]];
        bool alone = true;
        uint64_t sum = 0;
        for (int both = 1; both >= 0; both--) {
            cells.around(own[i], 0, [&](int64_t begin, int64_t end) {
                found.ask(end - begin);
                for (int64_t n = begin; n < end; n++) {
                    const double* x_j = pos + 3 * cells.order[n];
                    double r[3] = {x_j[0] - x_i[0], x_j[1] - x_i[1], x_j[2] - x_i[2]};
                    int64_t j = place[cells.order[n]], row = list.row[j];
                    bool is_near = r[0] * r[0] + r[1] * r[1] + r[2] * r[2] < square && i != j;
                    bool inside = row < N && part[row] == part[i], one_way = !inside || row == i;
                    alone &= inside || !is_near;
                    if (both && is_near) {
                        int64_t tag_j = tags[cells.order[n]];
                        sum += scramble(tag_i, tag_j, 0, 0, 0) - scramble(tag_j, tag_i, 0, 0, 0);
                    }
                    found.note(j, is_near && (both ? !one_way && i < row : one_way));
                }
            });
            found.end(both);
        }
        one_sided += sum;
        return alone;
    }
};

}  // namespace molnets
