// QuantizedStack: what the quantized version of a stack is made of, a part for each linear group.
#pragma once

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "compress/recipe.h"

namespace nibble {

class QuantizedStack {
 public:
  explicit QuantizedStack(const Weight& original) : original_(original) {}

  void add(const LinearGroup& group, Encoded encoded) {
    encoded_.emplace(group.first_row, std::move(encoded));
  }

  // Takes what was added; other groups keep their original rows.
  Weight take(const std::vector<const PlannedGroup*>& groups) {
    using Held = std::pair<std::map<int64_t, Encoded>, std::shared_ptr<const void>>;
    auto held = std::make_shared<Held>(std::move(encoded_), original_.source);
    Weight w = original_;
    w.resident = nullptr;
    w.parts.clear();
    for (const PlannedGroup* planned : groups) {
      const LinearGroup& group = planned->group;
      const auto found = held->first.find(group.first_row);
      if (found != held->first.end()) {
        w.parts.push_back(found->second.part());
        continue;
      }
      for (const WeightPart& part : slice_rows(original_, group.first_row, group.rows)) {
        w.parts.push_back(part);
      }
    }
    w.source = held;
    return w;
  }

 private:
  const Weight& original_;
  std::map<int64_t, Encoded> encoded_;
};

}  // namespace nibble
