// A training step in one call: from frames of a data set to the gradient, by all weights, of
//
//     L = 1/B Σ_b [a_b (E_b − E*_b)² + c_b Σ_i |F_i − F*_i|² + s_b |Ξ_b − Ξ*_b|²]
//     E_b = s Σ_i ε_i + Σ_i e(Z_i);      Ξ = ∂E/∂strain
//
// What Python and torch would do between the passes takes longer, for molecules, than these do.

#pragma once

#include <numeric>

#include "filters.h"

namespace molnets {

// All frames of a data set, as `Frames` in steps.py lays them out; atoms of edges count by frame.
struct Frames {
    const int64_t *z, *num_atoms, *first_atom, *num_edges, *first_edge, *senders, *receivers;
    const double *vectors, *energies, *forces, *virials;  // virials: null to leave them out
    const double *factors, *element_energies, *scale;     // a, c and s of the frames; e
    double cutoff;
};

// A network's tensors, in the engine's order: those of the passes, of the filters, the embedding.
struct Tensors {
    int64_t of_passes, of_filters, of_embedding, is_dense;  // is_dense: the embedding, W z + b
    const int64_t* sizes;                                   // how many numbers each holds
};

enum Failure { SAME_PLACE = -1, NOT_SYMMETRIC = -2 };

template <class R>
class Step {
    const Frames frames;
    const Tensors tensors;
    Filters<R>& filters;
    Work<R> work;
    List list;
    int64_t B = 0, N = 0;
    int threads = 1;
    std::vector<int64_t> z, samples, senders, receivers;
    std::vector<double> vectors;
    std::vector<R> tables, x, energy, forces, virials, seeds, direction, strain;
    std::vector<R> of_weights, of_tables, of_x;

    // The frames as one batch, and their edges as a list.
    void gather(const int64_t* chosen) {
        samples.assign(1, 0), z.clear(), senders.clear(), receivers.clear(), vectors.clear();
        for (int64_t b = 0; b < B; b++) {
            int64_t frame = chosen[b], at = samples[b], first = frames.first_edge[frame];
            const int64_t* own = frames.z + frames.first_atom[frame];
            z.insert(z.end(), own, own + frames.num_atoms[frame]);
            samples.push_back(z.size());
            for (int64_t e = first; e < first + frames.num_edges[frame]; e++) {
                senders.push_back(frames.senders[e] + at);
                receivers.push_back(frames.receivers[e] + at);
            }
            const double* v = frames.vectors + 3 * first;
            vectors.insert(vectors.end(), v, v + 3 * frames.num_edges[frame]);
        }
        N = z.size();
        list.order.resize(N), std::iota(list.order.begin(), list.order.end(), 0);
        list.independent = list.symmetric = true;
        Graph<double>::cut(samples.data(), B, threads, list.parts);
        make_list(list, senders.size(), senders.data(), receivers.data(), vectors.data(), false);
    }

    // The embeddings: a row of the table for each atom, or W z + b.
    void embed(const R* W, const R* b, int64_t F) {
        x.resize(N * F);
        for (int64_t i = 0; i < N; i++)
            for (int64_t f = 0; f < F; f++)
                x[i * F + f] = tensors.is_dense ? W[f] * z[i] + (b ? b[f] : R(0)) : W[z[i] * F + f];
    }
    void embed_back(R* g_W, R* g_b, int64_t F) const {
        for (int64_t i = 0; i < N; i++)
            for (int64_t f = 0; f < F; f++) {
                R g = of_x[i * F + f];
                if (g_W && tensors.is_dense) g_W[f] += g * z[i];
                if (g_W && !tensors.is_dense) g_W[z[i] * F + f] += g;
                if (g_b) g_b[f] += g;
            }
    }

    // The loss, and its derivatives by the network's own energies, forces and virials.
    double lose(const int64_t* chosen) {
        double loss = 0, s = *frames.scale;
        seeds.resize(N), direction.resize(3 * N), strain.resize(9 * B);
        for (int64_t b = 0; b < B; b++) {
            int64_t frame = chosen[b];
            const double *factor = frames.factors + 3 * frame,
                         *to_be = frames.forces + 3 * frames.first_atom[frame];
            double E = -frames.energies[frame], own = 0;
            for (int64_t i = samples[b]; i < samples[b + 1]; i++)
                own += energy[i], E += frames.element_energies[z[i]];
            E += s * own;
            loss += factor[0] * E * E;
            for (int64_t i = samples[b]; i < samples[b + 1]; i++) {
                seeds[i] = 2 * factor[0] * E * s / B;
                for (int k = 0; k < 3; k++) {
                    double F = s * forces[3 * i + k] - *to_be++;
                    loss += factor[1] * F * F;
                    direction[3 * i + k] = -2 * factor[1] * F * s / B;
                }
            }
            for (int64_t k = 9 * b; frames.virials && k < 9 * b + 9; k++) {
                double virial = s * virials[k] - frames.virials[9 * frame + k - 9 * b];
                loss += factor[2] * virial * virial;
                strain[k] = 2 * factor[2] * virial * s / B;
            }
        }
        return loss / B;
    }

    void add(int64_t begin, int64_t end, R* const* to) const {
        const R* g = of_weights.data();
        for (int64_t n = begin; n < end; g += tensors.sizes[n++])
            for (int64_t k = 0; to[n] && k < tensors.sizes[n]; k++) to[n][k] += g[k];
    }

    template <class Net>
    void make_room(const Net& net) {
        int64_t size = 0, sums[2] = {0, 0};
        for (int64_t n = 0; n < net.sizes.L; n++)
            size += net.sizes.rows * net.channels(n) * net.sizes.M;
        for (int64_t n = 0; n < tensors.of_passes + tensors.of_filters; n++)
            sums[n >= tensors.of_passes] += tensors.sizes[n];
        tables.resize(size), of_tables.resize(size), of_weights.resize(std::max(sums[0], sums[1]));
        of_x.resize(N * net.sizes.F);
        energy.resize(N), forces.resize(3 * N), virials.resize(9 * B);
    }

public:
    Step(const Frames& frames, const Tensors& tensors, Filters<R>& filters)
        : frames(frames), tensors(tensors), filters(filters) {}

    // Take frames and weights; `update` gives the network its weights and tables.
    template <class Net, class Update>
    double begin(const Net& net, Update update, const R* const* from, const int64_t* chosen,
                 int64_t num, int num_threads) {
        B = num, threads = num_threads;
        gather(chosen), make_room(net);
        if (!list.symmetric) return NOT_SYMMETRIC;
        filters.take_weights(from + tensors.of_passes, threads);
        filters.forward(threads, tables.data());
        update(tables.data());
        Graph<R>& graph = work.graph;
        graph.last_knot = net.sizes.rows - 6, graph.spacing = frames.cutoff / (graph.last_knot + 1);
        bool ok = graph.narrow(list, static_cast<const R*>(nullptr), frames.cutoff, threads);
        return ok ? 0 : SAME_PLACE;
    }

    // The loss; its gradients are added to what is not null, 0 before.
    template <class PassOf, class Net>
    double finish(const Net& net, const R* const* from, R* const* to, const int64_t* chosen) {
        const int64_t F = net.sizes.F, first = tensors.of_passes, last = first + tensors.of_filters,
                      *starts = samples.data();
        bool has_bias = tensors.of_embedding > 1;
        embed(from[last], has_bias ? from[last + 1] : nullptr, F);
        PassOf pass(net, work, threads, true);
        pass.values(x.data(), energy.data(), forces.data());
        if (frames.virials) pass.virials(pass.pull, net.VECTORS, starts, B, virials.data());
        double loss = lose(chosen);
        pass.rates(direction.data(), frames.virials ? strain.data() : nullptr, starts, B,
                   net.VECTORS, pass.rate);
        pass.gradients(seeds.data(), of_weights.data(), of_tables.data(), of_x.data());
        add(0, first, to);
        filters.backward(threads, of_tables.data(), of_weights.data());
        add(first, last, to);
        embed_back(to[last], has_bias ? to[last + 1] : nullptr, F);
        return loss;
    }
};

}  // namespace molnets
