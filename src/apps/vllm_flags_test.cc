#include "apps/vllm_flags.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace nibble {
namespace {

using Words = std::vector<std::string>;

TEST(VllmFlags, ThePublishedCommandKeepsWhatHasAnEffect) {
  const auto t = translate_vllm_flags(
      {"MODEL", "--trust-remote-code", "--dtype", "bfloat16", "--kv-cache-dtype", "fp8_e4m3",
       "--max-model-len", "11728", "--no-enable-prefix-caching", "--max-num-seqs", "1",
       "--gpu-memory-utilization", "0.97", "--enable-chunked-prefill", "--enforce-eager",
       "--num-gpu-blocks-override", "733"});
  EXPECT_EQ(t.arguments,
            (Words{"MODEL", "--dtype", "bfloat16", "--kv-cache-dtype", "fp8_e4m3",
                   "--max-model-len", "11728", "--no-enable-prefix-caching", "--max-num-seqs", "1",
                   "--gpu-memory-utilization", "0.97", "--num-gpu-blocks-override", "733"}));
  EXPECT_TRUE(t.warnings.empty());
}

TEST(VllmFlags, OtherSpellings) {
  EXPECT_EQ(translate_vllm_flags({"--model", "M", "--max_model_len=5"}).arguments,
            (Words{"M", "--max-model-len=5"}));
  EXPECT_EQ(translate_vllm_flags({"--model=M"}).arguments, Words{"M"});
  EXPECT_TRUE(translate_vllm_flags({"--tensor-parallel-size=1", "-tp", "1"}).arguments.empty());
}

TEST(VllmFlags, IgnoredFlagsWarnOnce) {
  const auto t = translate_vllm_flags({"--swap-space", "4", "--revision=main", "--port", "1"});
  EXPECT_EQ(t.arguments, (Words{"--port", "1"}));
  ASSERT_EQ(t.warnings.size(), 2u);
  EXPECT_NE(t.warnings[0].find("--swap-space 4 is ignored"), std::string::npos);
}

TEST(VllmFlags, SwitchesCanBeNegated) {
  const auto off = translate_vllm_flags({"--no-enable-log-requests", "--no_enable_lora",
                                         "--no-async-scheduling", "--no-enforce-eager"});
  EXPECT_TRUE(off.arguments.empty() && off.warnings.empty());
  const auto on = translate_vllm_flags({"--no-enable-auto-tool-choice"});
  ASSERT_EQ(on.warnings.size(), 1u);
  EXPECT_EQ(on.warnings[0],
            "--no-enable-auto-tool-choice is ignored: tool calls are always parsed");
  // Not a switch, and none of vLLM's.
  const Words kept = {"--no-enable-prefix-caching", "--no-swap-space", "--no-such-flag"};
  EXPECT_EQ(translate_vllm_flags(kept).arguments, kept);
}

TEST(VllmFlags, RefusalsGiveTheReason) {
  for (const Words& words :
       {Words{"--tensor-parallel-size", "2"}, Words{"--speculative-config.method", "mtp"},
        Words{"--middleware", "a", "b"}, Words{"--uds", "/x"}}) {
    try {
      translate_vllm_flags(words);
      ADD_FAILURE() << words[0];
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find(words[0]), std::string::npos) << e.what();
      EXPECT_NE(std::string(e.what()).find("not supported"), std::string::npos) << e.what();
    }
  }
  EXPECT_THROW(translate_vllm_flags({"--swap-space"}), Error);
}

}  // namespace
}  // namespace nibble
