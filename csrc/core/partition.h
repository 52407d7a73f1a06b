// Splitting a list of work among threads, the same way every time.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace pyguide {

// A list of items, each made of equally costly units (panels). Thread t of T gets the units
// whose cumulated cost lies in [t/T, (t+1)/T) of the total: one contiguous range of the
// flattened list, so that at most T - 1 items are shared between threads.
class Partition {
 public:
  // units[i] units in item i, each of cost unit_cost[i] > 0.
  Partition(std::vector<int64_t> units, std::vector<double> unit_cost)
      : units_(std::move(units)), unit_cost_(std::move(unit_cost)), start_(units_.size() + 1, 0.0) {
    for (size_t i = 0; i < units_.size(); ++i) {
      start_[i + 1] = start_[i] + double(units_[i]) * unit_cost_[i];
    }
  }

  double cost() const { return start_.back(); }
  int64_t items() const { return int64_t(units_.size()); }
  int64_t units(int64_t item) const { return units_[item]; }

  // The first unit of `item` that belongs to thread `t` or a later one.
  int64_t first_unit(int64_t item, int t, int threads) const {
    const double bound = start_.back() * double(t) / double(threads);
    if (t <= 0 || bound <= start_[item]) return 0;
    if (t >= threads || bound >= start_[item + 1]) return units_[item];
    const int64_t unit = int64_t((bound - start_[item]) / unit_cost_[item] + 0.5);
    return unit < units_[item] ? unit : units_[item];
  }

 private:
  std::vector<int64_t> units_;
  std::vector<double> unit_cost_;
  std::vector<double> start_;
};

}  // namespace pyguide
