// The engine as Python calls it: networks, lists of edges, work, each behind a pointer.
//
// Every function ends with _f for single or _d for double precision. Arrays are contiguous.

#include <type_traits>

#include "domain.h"
#include "painn.h"
#include "schnet.h"
#include "step.h"
#include "tensornet.h"
#include "update.h"

using namespace molnets;

namespace {

enum Kind { IS_SCHNET, IS_PAINN, IS_TENSORNET };

template <class R>
struct AnyNetwork {
    std::unique_ptr<SchNet<R>> schnet;
    std::unique_ptr<PaiNN<R>> painn;
    std::unique_ptr<TensorNet<R>> tensornet;
    std::vector<Buffer<R>> buffers;

    AnyNetwork(int64_t kind, const int64_t* s) {
        if (kind == IS_SCHNET) schnet.reset(new SchNet<R>({s[0], s[1], s[2], s[3], s[4]}));
        if (kind == IS_PAINN) painn.reset(new PaiNN<R>({s[0], s[1], s[2], s[3], s[4]}));
        if (kind == IS_TENSORNET) tensornet.reset(new TensorNet<R>({s[0], s[1], s[2], s[3], s[4]}));
    }
    // Call f(network, null of its pass's type).
    template <class F>
    void visit(F f) const {
        if (schnet) f(*schnet, (SchNetPass<R>*)nullptr);
        if (painn) f(*painn, (PaiNNPass<R>*)nullptr);
        if (tensornet) f(*tensornet, (TensorNetPass<R>*)nullptr);
    }
};

// Take coefficients c, (rows, channels, M) one block after the other, to tables of c and D, padded.
template <class R, class Net>
void take_tables(Net& net, std::vector<Buffer<R>>& buffers, const R* from) {
    const auto& s = net.sizes;
    int64_t M = padded<R>(s.M);
    if (buffers.empty()) buffers = std::vector<Buffer<R>>(s.L);
    net.tables.clear();
    for (int64_t n = 0; n < s.L; n++) {
        int64_t channels = net.channels(n), size = 2 * s.rows * channels * M;
        R* T = buffers[n].room(size);
        std::fill(T, T + size, R(0));
        visit_table<R>(s.rows, channels, M, s.M, net.group(n),
                       [&](int64_t row, int64_t at, int64_t width, int64_t place) {
                           T[at] = from[place];
                           if (row) T[at + width] = from[place] - from[place - channels * s.M];
                       });
        from += s.rows * channels * s.M;
        net.tables.push_back(T);
    }
}

// Take other weights and tables of the same shapes.
template <class R>
void update(AnyNetwork<R>* any, const R* const* tensors, const R* tables, int threads) {
    any->visit([&](auto& net, auto*) {
        net.take_weights(tensors, threads), take_tables(net, any->buffers, tables);
    });
}

template <class R>
AnyNetwork<R>* new_network(int64_t kind, const int64_t* sizes, const R* const* tensors,
                           const R* tables, int threads) {
    auto* any = new AnyNetwork<R>(kind, sizes);
    update(any, tensors, tables, threads);
    return any;
}

// Energies of atoms (N), forces (N, 3), and virials (B, 3, 3) unless null. Embeddings are those of
// all rows. Returns whether all that others have could be fetched.
template <class R>
bool energies(const AnyNetwork<R>* any, Work<R>* work, const R* embeddings, const int64_t* samples,
              int64_t B, int64_t keep, int64_t threads, R* energy, R* forces, R* virial) try {
    any->visit([&](const auto& net, auto* type) {
        std::remove_pointer_t<decltype(type)> pass(net, *work, threads, keep);
        pass.values(embeddings, energy, forces);
        if (virial) pass.virials(pass.pull, net.VECTORS, samples, B, virial);
    });
    return true;
} catch (const ExchangeFailed&) {
    return false;
}

// The shares of atoms in the virials, (N, 3, 3), after `energies` without keep.
template <class R>
void virials_of_atoms(const AnyNetwork<R>* any, Work<R>* work, int64_t threads, R* virial) {
    any->visit([&](const auto& net, auto* type) {
        std::remove_pointer_t<decltype(type)> pass(net, *work, threads,
                                                   false);  // finds its numbers
        pass.virials_of_atoms(pass.pull, net.VECTORS, virial);
    });
}

// The gradients of Σ_i seeds_i ε_i + dE/dε, after `energies` with keep and the same arguments.
template <class R>
void gradients(const AnyNetwork<R>* any, Work<R>* work, const R* seeds, const R* direction,
               const R* strain, const int64_t* samples, int64_t B, int64_t threads, R* of_weights,
               R* of_tables, R* of_embeddings) {
    any->visit([&](const auto& net, auto* type) {
        std::remove_pointer_t<decltype(type)> pass(net, *work, threads,
                                                   true);  // finds its numbers again
        pass.rates(direction, strain, samples, B, net.VECTORS, pass.rate);
        pass.gradients(seeds, of_weights, of_tables, of_embeddings);
    });
}

template <class R>
bool find(Work<R>* work, const void* pos, int64_t is_double, const int64_t* samples, int64_t B,
          const List* list, double cutoff, double reach, int64_t intervals, int64_t threads) {
    Graph<R>& graph = work->graph;
    graph.spacing = reach / intervals, graph.last_knot = intervals - 1;
    auto with = [&](auto* positions) {
        if (list) return graph.narrow(*list, positions, cutoff, threads);
        return graph.search(positions, samples, B, cutoff, threads);
    };
    return is_double ? with(static_cast<const double*>(pos)) : with(static_cast<const float*>(pos));
}

// Filters of such sizes: blocks, Gaussians, M, knots, taps, and whether they are dense - activation
// - dense, else one matrix. The arrays stay the caller's.
template <class R>
Filters<R>* new_filters(const int64_t* s, const int64_t* channels, const R* e, const R* fade,
                        const R* a) {
    return new Filters<R>{s[5] != 0, s[0], s[1], s[2], s[3], s[4], {channels, channels + s[0]},
                          e,         fade, a};
}

// Coefficients of splines from the weights of filters, and the gradients by the weights of those by
// the coefficients; each unless its array is null. The latter belong to the coefficients computed
// last.
template <class R>
void splines(Filters<R>* filters, const R* const* tensors, int64_t threads, R* c, const R* of_c,
             R* of_weights) {
    if (c) filters->take_weights(tensors, threads), filters->forward(threads, c);
    if (of_c) filters->backward(threads, of_c, of_weights);
}

// The loss of some frames, whose gradients are added to `to`, 0 before; negative: a Failure.
template <class R>
double take_step(Step<R>* step, AnyNetwork<R>* any, const R* const* from, R* const* to,
                 const int64_t* chosen, int64_t B, int64_t threads) {
    double result = 0;
    any->visit([&](const auto& net, auto* type) {
        auto with = [&](const R* tables) { update(any, from, tables, threads); };
        result = step->begin(net, with, from, chosen, B, threads);
        using PassOf = std::remove_pointer_t<decltype(type)>;
        if (result == 0) result = step->template finish<PassOf>(net, from, to, chosen);
    });
    return result;
}

// Whether all of the numbers are finite.
template <class R>
bool finite(const R* x, int64_t size) {
    bool all = true;
    for (int64_t n = 0; n < size; n++) all &= std::isfinite(x[n]);
    return all;
}

}  // namespace

#define FOR_EACH_PRECISION(X) X(float, f) X(double, d)
#define EXPORT(R, s)                                                                               \
    void* network_##s(int64_t kind, const int64_t* sizes, const R* const* tensors,                 \
                      const R* tables, int64_t threads) {                                          \
        return new_network<R>(kind, sizes, tensors, tables, threads);                              \
    }                                                                                              \
    void free_network_##s(void* any) { delete static_cast<AnyNetwork<R>*>(any); }                  \
    void* work_##s() { return new Work<R>; }                                                       \
    void free_work_##s(void* work) { delete static_cast<Work<R>*>(work); }                         \
    int64_t find_##s(void* work, const void* pos, int64_t is_double, const int64_t* samples,       \
                     int64_t B, void* list, double cutoff, double reach, int64_t intervals,        \
                     int64_t threads) {                                                            \
        return find<R>(static_cast<Work<R>*>(work), pos, is_double, samples, B,                    \
                       static_cast<List*>(list), cutoff, reach, intervals, threads);               \
    }                                                                                              \
    void set_exchange_##s(void* work, Exchange exchange) {                                         \
        static_cast<Work<R>*>(work)->exchange = exchange;                                          \
    }                                                                                              \
    int64_t energies_##s(void* any, void* work, const R* embeddings, const int64_t* samples,       \
                         int64_t B, int64_t keep, int64_t threads, R* energy, R* forces,           \
                         R* virial) {                                                              \
        return energies<R>(static_cast<AnyNetwork<R>*>(any), static_cast<Work<R>*>(work),          \
                           embeddings, samples, B, keep, threads, energy, forces, virial);         \
    }                                                                                              \
    void virials_of_atoms_##s(void* any, void* work, int64_t threads, R* virial) {                 \
        virials_of_atoms<R>(static_cast<AnyNetwork<R>*>(any), static_cast<Work<R>*>(work),         \
                            threads, virial);                                                      \
    }                                                                                              \
    void gradients_##s(void* any, void* work, const R* seeds, const R* direction, const R* strain, \
                       const int64_t* samples, int64_t B, int64_t threads, R* of_weights,          \
                       R* of_tables, R* of_embeddings) {                                           \
        gradients<R>(static_cast<AnyNetwork<R>*>(any), static_cast<Work<R>*>(work), seeds,         \
                     direction, strain, samples, B, threads, of_weights, of_tables,                \
                     of_embeddings);                                                               \
    }                                                                                              \
    void update_##s(void* any, const R* const* tensors, const R* tables, int64_t threads) {        \
        update<R>(static_cast<AnyNetwork<R>*>(any), tensors, tables, threads);                     \
    }                                                                                              \
    void* filters_##s(const int64_t* sizes, const int64_t* channels, const R* e, const R* fade,    \
                      const R* a) {                                                                \
        return new_filters<R>(sizes, channels, e, fade, a);                                        \
    }                                                                                              \
    void free_filters_##s(void* filters) { delete static_cast<Filters<R>*>(filters); }             \
    void splines_##s(void* filters, const R* const* tensors, int64_t threads, R* c, const R* of_c, \
                     R* of_weights) {                                                              \
        splines<R>(static_cast<Filters<R>*>(filters), tensors, threads, c, of_c, of_weights);      \
    }                                                                                              \
    void* step_##s(const Frames* frames, const Tensors* tensors, void* filters) {                  \
        return new Step<R>(*frames, *tensors, *static_cast<Filters<R>*>(filters));                 \
    }                                                                                              \
    void free_step_##s(void* step) { delete static_cast<Step<R>*>(step); }                         \
    double take_step_##s(void* step, void* any, const R* const* from, R* const* to,                \
                         const int64_t* chosen, int64_t B, int64_t threads) {                      \
        return take_step<R>(static_cast<Step<R>*>(step), static_cast<AnyNetwork<R>*>(any), from,   \
                            to, chosen, B, threads);                                               \
    }                                                                                              \
    void update_weights_##s(const Rates* rates, int64_t P, R* w, const R* g, R* m, R* v,           \
                            R* average) {                                                          \
        update_weights(*rates, P, w, g, m, v, average);                                            \
    }                                                                                              \
    int64_t finite_##s(const R* x, int64_t size) { return finite<R>(x, size); }

extern "C" {
FOR_EACH_PRECISION(EXPORT)

// A list of directed edges j -> i in range of each other, sorted; pos: null to keep the atoms'
// order.
void* list_of(const double* pos, const int64_t* samples, int64_t B, double cutoff, int64_t E,
              const int64_t* senders, const int64_t* receivers, const double* offset,
              int64_t one_offset, int64_t threads) {
    List* list = new List;
    list->order.resize(samples[B]);
    std::iota(list->order.begin(), list->order.end(), 0);
    if (pos) {
        Cells cells;
        cells.sort_atoms(pos, samples, B, cutoff);
        list->order = cells.order;
    }
    Graph<double>::cut(samples, B, threads, list->parts);
    make_list(*list, E, senders, receivers, offset, one_offset);
    return list;
}
void free_list(void* list) { delete static_cast<List*>(list); }
// The list of a process's part of a system: see domain.h.
void* domain(const double* pos, const int64_t* tags, int64_t N, int64_t num_points,
             const int64_t* image, double reach, int64_t threads, uint64_t* one_sided) {
    List* list = new List;
    *one_sided = Domain(*list, pos, tags, N, num_points, image, reach, threads).one_sided;
    return list;
}
// The order of its own atoms, (N), and which copies others send something to, (num_points - N).
void describe_domain(const void* domain, int64_t* order, uint8_t* needed) {
    const List& list = *static_cast<const List*>(domain);
    const int64_t N = list.parts.back();
    std::copy(list.order.begin(), list.order.begin() + N, order);
    std::fill(needed, needed + list.order.size() - N, 0);
    for (uint32_t j : list.sender)
        if (list.row[j] >= N) needed[j - N] = 1;
}
// Give rows behind its own to copies of others' atoms; negative for none.
void give_rows(void* domain, const int64_t* rows, int64_t num_fetched) {
    List& list = *static_cast<List*>(domain);
    const int64_t N = list.parts.back();
    for (size_t n = N; n < list.order.size(); n++)
        if (rows[n - N] >= 0) list.row[n] = uint32_t(N + rows[n - N]);
    list.num_rows = N + num_fetched;
}
// Whether arrays hold, one after the other, the bytes that were seen.
int64_t same(const void* const* arrays, const int64_t* sizes, const char* seen, int64_t num) {
    for (int64_t n = 0; n < num; seen += sizes[n++])
        if (std::memcmp(arrays[n], seen, sizes[n])) return false;
    return true;
}
int64_t is_symmetric(void* list) { return static_cast<List*>(list)->symmetric; }
}
