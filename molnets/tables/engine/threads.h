// A pool of threads that take tasks as they come free.
//
// Whoever calls works too, and waits for tasks that were begun, never for a thread that has not
// come yet: one that is late, because its core is busy with something else, delays nobody. Threads
// wait a moment for the next tasks and then sleep. After a fork the child begins with a pool of its
// own.

#pragma once

#include <pthread.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace molnets {

inline void breathe() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

class Pool {
    static constexpr int PATIENCE = 10000;            // rounds of waiting before a thread sleeps
    static constexpr uint64_t INDEX = (1 << 24) - 1;  // a ticket: 16 bits round, 24 count, 24 index

    std::atomic<bool> busy{false};
    std::mutex sleep;
    std::condition_variable wake;
    std::atomic<uint64_t> ticket{0};
    std::atomic<int64_t> done{0};
    std::atomic<int> sleepers{0}, most{0};
    int num_threads = 0;
    void (*call)(void*, int64_t) = nullptr;
    void* what = nullptr;

    bool take_one() {
        uint64_t now = ticket.load(std::memory_order_acquire);
        while ((now & INDEX) < ((now >> 24) & INDEX))
            if (ticket.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel)) {
                call(what, now & INDEX);  // a task was left, so its round has not ended
                done.fetch_add(1, std::memory_order_release);
                return true;
            }
        return false;
    }

    void work(int number) {
        uint64_t seen = 0;
        for (int waited = 0;; waited++) {
            uint64_t round = ticket.load(std::memory_order_acquire) >> 48;
            if (round != seen) {
                while (number < most.load(std::memory_order_relaxed) && take_one()) {
                }
                seen = round, waited = 0;
            }
            breathe();
            if (waited < PATIENCE) continue;
            std::unique_lock<std::mutex> lock(sleep);
            sleepers++;
            wake.wait(lock, [&] { return ticket.load() >> 48 != seen; });
            sleepers--;
            waited = 0;
        }
    }

    void run(int64_t count, int threads) {
        for (; num_threads < threads - 1; num_threads++)
            std::thread(&Pool::work, this, num_threads).detach();
        most = threads - 1, done = 0;
        uint64_t round = (ticket.load() >> 48) + 1;
        ticket.store(round << 48 | uint64_t(count) << 24);
        if (sleepers.load() > 0) {
            {
                std::lock_guard<std::mutex> lock(sleep);
            }
            wake.notify_all();
        }
        while (take_one()) {
        }
        while (done.load(std::memory_order_acquire) < count) breathe();
    }

    static Pool*& instance() {
        static Pool* pool = [] {
            pthread_atfork(nullptr, nullptr, [] { instance() = new Pool; });
            return new Pool;
        }();
        return pool;
    }

public:
    // How many threads so many multiply-adds are worth: to wake one takes as long as a million.
    static int worth(double operations, int threads) { return operations < 1e6 ? 1 : threads; }

    // Call f(task) for all tasks; in turn if there is one thread, or the pool is at work already.
    template <class F>
    static void each(int64_t count, int threads, F f) {
        Pool& pool = *instance();
        if (count < 2 || threads < 2 || count > int64_t(INDEX) || pool.busy.exchange(true)) {
            for (int64_t task = 0; task < count; task++) f(task);
            return;
        }
        pool.what = &f;
        pool.call = [](void* g, int64_t task) { (*static_cast<F*>(g))(task); };
        pool.run(count, threads);
        pool.busy = false;
    }
};

}  // namespace molnets
