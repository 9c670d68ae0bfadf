// A card that is lost while the engine runs: requests end with an error, the engine says so, and
// nothing waits. A program of its own: the process has no card afterwards.
#include <chrono>
#include <thread>

#include "base/error.h"
#include "tests/lose_card.h"
#include "tests/pocket_model.h"

namespace nibble {
namespace {

using std::chrono::steady_clock;

// Of all updates until the stream ends, the last; fails after a minute.
Finish finish_of(TokenStream& stream) {
  const auto deadline = steady_clock::now() + std::chrono::minutes(1);
  while (steady_clock::now() < deadline) {
    const StreamUpdate update = stream.poll();
    if (update.finish) return *update.finish;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  ADD_FAILURE() << "the stream does not end";
  return {};
}

TEST(LostCard, EndsWhatRunsAndTheEngine) {
  if (!is_here("cuda")) GTEST_SKIP() << "no CUDA device here";
  PocketModel pocket("cuda");
  auto server = pocket.serve({.max_num_seqs = 2, .num_pages = 800});
  Engine& engine = *server.engine;
  std::thread steps([&] { engine.run(); });
  // The third waits.
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < 3; ++i) {
    streams.push_back(
        engine.submit({.prompt = load_goldens()[0].input_ids,
                       .sampling = {.temperature = 0, .max_tokens = 1500, .ignore_eos = true}}));
  }
  while (engine.healthy() && streams[0]->poll().tokens.empty()) std::this_thread::yield();
  EXPECT_TRUE(engine.healthy());

  const std::string loss = lose_card();
  for (const auto& stream : streams) {
    const Finish finish = finish_of(*stream);
    EXPECT_EQ(finish.reason, FinishReason::kError);
    EXPECT_NE(finish.error.find(loss), std::string::npos) << finish.error << " for " << loss;
  }
  steps.join();
  EXPECT_FALSE(engine.healthy());
  try {
    engine.submit({.prompt = {1, 2, 3}});
    ADD_FAILURE() << "a request was taken";
  } catch (const ApiError& error) {
    EXPECT_EQ(error.status, 503);
  }
}

}  // namespace
}  // namespace nibble
