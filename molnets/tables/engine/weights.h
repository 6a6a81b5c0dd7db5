// A network's weights as the passes take them, and their gradients on the way back to the tensors.

#pragma once

#include <memory>

#include "dense.h"
#include "graph.h"

namespace molnets {

constexpr int64_t SLICE = 32;  // rows of a weight that are one task

template <class R>
int64_t padded(int64_t size) {
    return (size + LANES<R> - 1) / LANES<R> * LANES<R>;
}

// A matrix of blocks: (out_blocks, out) by (in_blocks, in), each block padded by itself.
struct Shape {
    int64_t out_blocks, out, in_blocks, in;
    bool bias;
};

// Weights as the passes take them, made of a network's tensors, in turn; and gradients on their way
// back.
template <class R>
class Weights {
    std::vector<std::unique_ptr<Buffer<R>>> buffers;
    size_t next = 0;  // of the buffers

public:
    struct Layer {
        Shape shape;
        Dense<R> dense;
        R *W, *Wt, *b;
        const R *from, *b_from;
    };
    std::vector<Layer> layers;

    // Begin anew, in the same memory: layers of the same shapes follow, in the same order.
    void restart() { next = 0, layers.clear(); }

    R* room(int64_t size) {
        if (next < buffers.size()) return buffers[next++]->room(size);
        buffers.push_back(std::make_unique<Buffer<R>>());
        R* at = buffers[next++]->room(size);
        std::fill(at, at + size, R(0));  // what pads a layer is never written again
        return at;
    }

    // Call f(row, column, place in the tensor) for all numbers of a matrix.
    template <class F>
    static void visit(const Shape& s, F f) {
        int64_t at = 0, O = padded<R>(s.out), I = padded<R>(s.in);
        for (int64_t o = 0; o < s.out_blocks * O; o += O)
            for (int64_t row = o; row < o + s.out; row++)
                for (int64_t i = 0; i < s.in_blocks * I; i += I)
                    for (int64_t column = i; column < i + s.in; column++) f(row, column, at++);
    }

    // Make room for a layer; `pack` fills it.
    Dense<R> layer(Shape s, const R* const*& tensors) {
        Dense<R> dense;
        dense.out = s.out_blocks * padded<R>(s.out), dense.in = s.in_blocks * padded<R>(s.in);
        R *W = room(dense.out * dense.in), *Wt = room(dense.out * dense.in),
          *b = s.bias ? room(dense.out) : nullptr;
        dense.W = W, dense.Wt = Wt, dense.b = b;
        const R* from = *tensors++;
        layers.push_back({s, dense, W, Wt, b, from, s.bias ? *tensors++ : nullptr});
        return dense;
    }

    void pack(int threads) {
        double moves = 0;  // each takes as long as a few operations
        for (auto& layer : layers) moves += 2.0 * layer.dense.out * layer.dense.in;
        Pool::each(layers.size(), Pool::worth(4 * moves, threads), [&](int64_t n) {
            const Layer& to = layers[n];
            const Shape& s = to.shape;
            const int64_t O = to.dense.out, I = to.dense.in;
            visit(s, [&](int64_t o, int64_t i, int64_t at) { to.W[o * I + i] = to.from[at]; });
            for (int64_t i = 0; i < I; i++)
                for (int64_t o = 0; o < O; o++) to.Wt[i * O + o] = to.W[o * I + i];
            for (int64_t o = 0; to.b && o < s.out_blocks * s.out; o++)
                to.b[o / s.out * padded<R>(s.out) + o % s.out] = to.b_from[o];
        });
    }

    Perceptron<R> perceptron(Shape first, Shape second, Activation kind, const R* const*& tensors) {
        Perceptron<R> p;
        p.first = layer(first, tensors), p.second = layer(second, tensors), p.kind = kind;
        return p;
    }
};

// Room of a thread, for what is not kept beyond ROWS atoms.
template <class R>
R* scratch(int64_t size) {
    thread_local Buffer<R> buffer;
    return buffer.room(size);
}

// A weight's gradient to be summed: of the layer's output and input.
template <class R>
struct Sum {
    Quantity<R> y, x;
    int64_t rows;
};

// The gradients of all weights, one after the other, as the tensors that they were made of.
template <class R>
void gradients_of_weights(const Weights<R>& weights, const std::vector<Sum<R>>& sums, int threads,
                          bool tangents, R* out) {
    struct Task {
        size_t layer;
        int64_t lo, hi;
    };
    std::vector<Task> tasks;
    std::vector<R*> W, b;
    int64_t size = 0;
    double operations = 0;
    for (auto& layer : weights.layers) size += layer.dense.out * (layer.dense.in + 1);
    R* at = scratch<R>(size);
    for (size_t n = 0; n < sums.size(); n++) {
        const Dense<R>& dense = weights.layers[n].dense;
        W.push_back(at), b.push_back(at + dense.out * dense.in), at = b[n] + dense.out;
        operations += (1.0 + tangents) * sums[n].rows * dense.out * dense.in;
        for (int64_t lo = 0; lo < dense.out; lo += SLICE)
            tasks.push_back({n, lo, std::min(lo + SLICE, dense.out)});
    }
    Pool::each(tasks.size(), Pool::worth(operations, threads), [&](int64_t number) {
        const Task& task = tasks[number];
        const Sum<R>& s = sums[task.layer];
        weights.layers[task.layer].dense.gradient(task.lo, task.hi, s.rows, s.y, s.x, tangents,
                                                  W[task.layer], b[task.layer]);
    });
    for (size_t n = 0; n < sums.size(); n++) {
        const Shape& shape = weights.layers[n].shape;
        Weights<R>::visit(shape, [&](int64_t o, int64_t i, int64_t) {
            *out++ = W[n][o * weights.layers[n].dense.in + i];
        });
        for (int64_t o = 0; shape.bias && o < shape.out_blocks * shape.out; o++)
            *out++ = b[n][o / shape.out * padded<R>(shape.out) + o % shape.out];
    }
}

}  // namespace molnets
