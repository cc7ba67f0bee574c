// Prints the GFLOP/s that this many threads reach with nothing but fused multiply-adds in registers: the hardware's
// peak, which no matrix product reaches quite.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int kWidth = 16, kChains = 24;  // of 32 registers
#elif defined(__AVX__)
constexpr int kWidth = 8, kChains = 12;  // of 16
#else
constexpr int kWidth = 4, kChains = 12;
#endif

typedef float Vector __attribute__((vector_size(4 * kWidth)));

// As many independent chains as the registers hold, so that no multiply-add waits for the one before it.
static float multiply_adds(long rounds, float factor, float summand) {
  Vector a = {}, b = {}, chains[kChains];
  a += factor;
  b += summand;
  for (int k = 0; k < kChains; ++k) chains[k] = b * float(k);
  for (long round = 0; round < rounds; ++round) {
#pragma GCC unroll 32
    for (int k = 0; k < kChains; ++k) chains[k] = chains[k] * a + b;
  }
  Vector sum = {};
  for (int k = 0; k < kChains; ++k) sum += chains[k];
  float total = 0;
  for (int lane = 0; lane < kWidth; ++lane) total += sum[lane];
  return total;
}

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const long rounds = 10'000'000;
  double best = 0;
  volatile float kept = 0;  // else the compiler would leave the work out
  for (int repeat = 0; repeat < 5; ++repeat) {
    std::vector<std::thread> team;
    const auto begin = std::chrono::steady_clock::now();
    for (int t = 1; t < threads; ++t) {
      team.emplace_back([&kept, rounds] { kept = multiply_adds(rounds, 0.5f, 0.25f); });
    }
    kept = multiply_adds(rounds, 0.5f, 0.25f);
    for (auto& thread : team) thread.join();
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin;
    const double gflops = 2e-9 * kWidth * kChains * double(rounds) * threads / taken.count();
    if (gflops > best) best = gflops;
  }
  std::printf("%.1f\n", best);
}
