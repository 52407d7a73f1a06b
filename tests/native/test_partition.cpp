// What gram and apply rely on when they share work by core/partition.h.
#include <algorithm>
#include <cmath>
#include <random>

#include "check.h"
#include "core/partition.h"

using pyguide::Partition;

namespace {

struct Work {
  std::vector<int64_t> units;
  std::vector<double> costs;
};

Work random_work(std::mt19937_64& generator) {
  const int items = 1 + int(generator() % 12);
  Work work;
  for (int i = 0; i < items; ++i) {
    work.units.push_back(1 + int64_t(generator() % (generator() % 4 ? 8 : 200)));
    work.costs.push_back(std::ldexp(1 + double(generator() % 1000), int(generator() % 20)));
  }
  return work;
}

void check_partition(const Work& work, int threads, const std::string& where) {
  const Partition partition(work.units, work.costs);
  int shared = 0;
  for (int64_t item = 0; item < partition.items(); ++item) {
    CHECK(partition.first_unit(item, 0, threads) == 0, where);
    CHECK(partition.first_unit(item, threads, threads) == partition.units(item), where);
    int owners = 0;
    for (int t = 0; t < threads; ++t) {
      const int64_t first = partition.first_unit(item, t, threads);
      const int64_t last = partition.first_unit(item, t + 1, threads);
      CHECK(first <= last, where << ", item " << item << ", thread " << t);
      owners += first < last;
    }
    shared += owners - 1;
  }
  CHECK(shared <= threads - 1, where);
  double largest_unit = 0;
  for (double cost : work.costs) largest_unit = std::max(largest_unit, cost);
  for (int t = 0; t < threads; ++t) {
    double cost = 0;
    int begun_by_others = 0, left_to_others = 0;
    for (int64_t item = 0; item < partition.items(); ++item) {
      const int64_t first = partition.first_unit(item, t, threads);
      const int64_t last = partition.first_unit(item, t + 1, threads);
      cost += double(last - first) * work.costs[size_t(item)];
      begun_by_others += first < last && first > 0;
      left_to_others += first == 0 && 0 < last && last < partition.units(item);
    }
    // Gram keeps two sets of sums a thread: one for each of these.
    CHECK(begun_by_others <= 1 && left_to_others <= 1, where << ", thread " << t);
    CHECK(cost <= partition.cost() / threads + largest_unit * 1.0001, where << ", thread " << t);
  }
}

}  // namespace

TEST(partition_of_random_work) {
  std::mt19937_64 generator(1);
  for (int round = 0; round < 2000; ++round) {
    const Work work = random_work(generator);
    for (int threads : {1, 2, 3, 7, 64}) {
      std::ostringstream where;
      where << "round " << round << ", threads " << threads;
      check_partition(work, threads, where.str());
    }
  }
}
