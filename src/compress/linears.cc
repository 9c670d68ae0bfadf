#include "compress/linears.h"

#include "base/check.h"

namespace nibble {
namespace {

const char* site_name(Site site) {
  switch (site) {
    case Site::kQkvA:
      return "self_attn.qkv_a";
    case Site::kQB:
      return "self_attn.q_b";
    case Site::kKvB:
      return "self_attn.kv_b";
    case Site::kO:
      return "self_attn.o";
    case Site::kGateUp:
      return "mlp.gate_up";
    case Site::kDown:
      return "mlp.down";
    case Site::kExpertsGateUp:
      return "gate_up";
    case Site::kExpertsDown:
      return "down";
  }
  return "";
}

LinearGroup group_of(Site site, int layer, int64_t cols, std::vector<Linear> linears) {
  LinearGroup group{.site = site, .layer = layer, .cols = cols, .linears = std::move(linears)};
  for (const Linear& linear : group.linears) group.rows += linear.rows;
  return group;
}

void add_experts(std::vector<LinearGroup>& groups, const GlmConfig& c, int layer,
                 const std::string& prefix) {
  for (const Site site : {Site::kExpertsGateUp, Site::kExpertsDown}) {
    for (int e = 0; e < c.num_experts; ++e) {
      const std::string name = prefix + "experts." + std::to_string(e) + ".";
      LinearGroup group =
          site == Site::kExpertsGateUp
              ? group_of(site, layer, c.hidden,
                         {{name + "gate_proj", c.expert_dim}, {name + "up_proj", c.expert_dim}})
              : group_of(site, layer, c.expert_dim, {{name + "down_proj", c.hidden}});
      group.expert = e;
      group.first_row = e * group.rows;
      groups.push_back(std::move(group));
    }
  }
}

}  // namespace

std::string LinearGroup::name() const {
  const std::string place = "layers." + std::to_string(layer) + ".";
  return expert < 0 ? place + site_name(site)
                    : place + "mlp.experts." + std::to_string(expert) + "." + site_name(site);
}

std::vector<LinearGroup> linear_groups(const GlmConfig& c, int layer) {
  const std::string prefix = "model.layers." + std::to_string(layer) + ".";
  const std::string attention = prefix + "self_attn.";
  const MlaShape mla = c.mla();
  std::vector<LinearGroup> groups;
  groups.push_back(group_of(
      Site::kQkvA, layer, c.hidden,
      {{attention + "q_a_proj", c.q_rank}, {attention + "kv_a_proj_with_mqa", mla.record_dim()}}));
  groups.push_back(
      group_of(Site::kQB, layer, c.q_rank, {{attention + "q_b_proj", c.heads * mla.query_dim()}}));
  groups.push_back(group_of(Site::kKvB, layer, c.kv_rank,
                            {{attention + "kv_b_proj", c.heads * (c.nope_dim + c.value_dim)}}));
  groups.push_back(
      group_of(Site::kO, layer, c.heads * c.value_dim, {{attention + "o_proj", c.hidden}}));
  const bool dense = c.is_dense(layer);
  const std::string mlp = prefix + "mlp.";
  const std::string single = dense ? mlp : mlp + "shared_experts.";
  const int64_t width = dense ? c.dense_dim : int64_t(c.expert_dim) * c.shared_experts;
  groups.push_back(group_of(Site::kGateUp, layer, c.hidden,
                            {{single + "gate_proj", width}, {single + "up_proj", width}}));
  if (!dense) add_experts(groups, c, layer, mlp);
  groups.push_back(group_of(Site::kDown, layer, width, {{single + "down_proj", c.hidden}}));
  return groups;
}

Weight& weight_at(GlmLayer& layer, Site site) {
  switch (site) {
    case Site::kQkvA:
      return layer.qkv_a;
    case Site::kQB:
      return layer.q_b;
    case Site::kKvB:
      return layer.kv_b;
    case Site::kO:
      return layer.o;
    case Site::kGateUp:
      return layer.feed_forward.gate_up;
    case Site::kDown:
      return layer.feed_forward.down;
    case Site::kExpertsGateUp:
      return layer.experts_gate_up;
    case Site::kExpertsDown:
      return layer.experts_down;
  }
  CHECK(false, "site %d", int(site));
  return layer.o;
}

const Weight& weight_at(const GlmLayer& layer, Site site) {
  return weight_at(const_cast<GlmLayer&>(layer), site);
}

void decode_rows(const Weight& weight, const LinearGroup& group, int64_t first, int64_t count,
                 float* out) {
  CHECK(weight.cols == group.cols, "%s", weight.name.c_str());
  for (int64_t r = 0; r < count; ++r) {
    decode_row(weight, group.first_row + first + r, out + r * group.cols);
  }
}

bool matches_pattern(const std::string& name, const std::string& pattern) {
  size_t n = 0, p = 0, star = std::string::npos, resume = 0;
  while (n < name.size()) {
    if (p < pattern.size() && pattern[p] == '*') {
      star = p++;
      resume = n;
    } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
      ++p;
      ++n;
    } else if (star != std::string::npos) {
      p = star + 1;
      n = ++resume;
    } else {
      return false;
    }
  }
  while (p < pattern.size() && pattern[p] == '*') ++p;
  return p == pattern.size();
}

}  // namespace nibble
