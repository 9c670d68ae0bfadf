// The engine on the pocket model: however a request is cut, batched, cached or preempted, its
// tokens are the same; aborted requests leave nothing behind.
#include <algorithm>
#include <cstring>
#include <map>
#include <set>
#include <thread>

#include "backend/cpu/cpu_backend.h"
#include "base/error.h"
#include "tests/pocket_model.h"

namespace nibble {
namespace {

// Reads arrive when they are waited for and not before, as with a card that computes meanwhile.
class LateBackend : public CpuBackend {
 public:
  LateBackend() : CpuBackend(2) {}
  bool runs_behind() const override { return true; }
  void start_read(const void* memory, void* host, size_t bytes) override {
    std::vector<uint8_t>& bytes_read = reads_[host];
    bytes_read.resize(bytes);
    read(memory, bytes_read.data(), bytes);
    std::memset(host, 0xee, bytes);
  }
  void finish_read(void* host) override {
    std::ranges::copy(reads_.at(host), static_cast<uint8_t*>(host));
    reads_.erase(host);
  }

 private:
  std::map<void*, std::vector<uint8_t>> reads_;
};

// A device that is lost at some point: every call fails from then on.
class LostBackend : public CpuBackend {
 public:
  LostBackend() : CpuBackend(2) {}
  void sample(Tensor logits, const SampleBatch& rows, SampleResult out) override {
    if (is_lost) throw Error("the device failed: it fell off the bus");
    CpuBackend::sample(logits, rows, out);
  }
  std::atomic<bool> is_lost{false};
};

std::unique_ptr<Backend> backend_of(const std::string& device) {
  if (device == "late") return std::make_unique<LateBackend>();
  return create_backend({.device = device, .threads = 2});
}

class EngineTest : public testing::TestWithParam<const char*> {
 protected:
  static void TearDownTestSuite() { pocket_.reset(); }
  // Loaded once for all tests of a device.
  void SetUp() override {
    if (!is_here(GetParam())) GTEST_SKIP() << "no CUDA device here";
    if (device_ == GetParam()) return;
    pocket_ = std::make_unique<PocketModel>(backend_of(GetParam()));
    device_ = GetParam();
  }

  static Request greedy(const Golden& golden) {
    return {.prompt = golden.input_ids, .sampling = {.temperature = 0, .max_tokens = 160}};
  }

  // Submits all goldens at once, the one asked for first; its tokens must be right.
  static void expect_goldens(Engine& engine, const std::vector<Golden>& goldens) {
    std::vector<std::shared_ptr<TokenStream>> streams;
    for (const Golden& golden : goldens) streams.push_back(engine.submit(greedy(golden)));
    for (size_t i = 0; i < goldens.size(); ++i) {
      EXPECT_EQ(drain(engine, *streams[i]), goldens[i].greedy_ids) << goldens[i].family;
    }
    while (engine.step()) {
    }
    EXPECT_EQ(engine.metrics().num_pages_used, 0);
    EXPECT_EQ(engine.metrics().num_requests_running, 0);
    EXPECT_EQ(engine.metrics().num_requests_waiting, 0);
  }

  static inline std::unique_ptr<PocketModel> pocket_;
  static inline std::string device_;
  const std::vector<Golden> goldens_ = load_goldens();
};

TEST_P(EngineTest, PrefillInChunksOfAnySize) {
  for (const int chunk : {1, 7, 64, 1024}) {
    auto server =
        pocket_->serve({.max_num_seqs = 1, .max_num_batched_tokens = chunk, .num_pages = 256});
    // The long needle only where chunks are not tiny: 591 tokens one at a time are slow.
    for (const Golden& golden : goldens_) {
      if (chunk < 64 && golden.input_ids.size() > 200) continue;
      expect_goldens(*server.engine, {golden});
    }
  }
}

TEST_P(EngineTest, AloneOrInABatchOfSixteen) {
  auto server =
      pocket_->serve({.max_num_seqs = 16, .max_num_batched_tokens = 64, .num_pages = 800});
  std::vector<Golden> sixteen = goldens_;
  sixteen.insert(sixteen.end(), goldens_.begin(), goldens_.begin() + 4);
  expect_goldens(*server.engine, sixteen);
}

TEST_P(EngineTest, AloneOrAmongSixtyThreeOthers) {
  constexpr int kCount = 64;
  auto server =
      pocket_->serve({.max_num_seqs = kCount, .max_num_batched_tokens = 8192, .num_pages = 2400});
  Engine& engine = *server.engine;
  const auto golden = [&](int i) { return goldens_[size_t(i) % goldens_.size()]; };
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (int i = 0; i < kCount; ++i) streams.push_back(engine.submit(greedy(golden(i))));
  int64_t most_running = 0;
  while (engine.step()) {
    most_running = std::max<int64_t>(most_running, engine.metrics().num_requests_running);
  }
  EXPECT_EQ(most_running, kCount);
  for (int i = 0; i < kCount; ++i) {
    EXPECT_EQ(drain(engine, *streams[size_t(i)]), golden(i).greedy_ids) << golden(i).family;
  }
}

TEST_P(EngineTest, WithAndWithoutAPrefixHit) {
  auto server = pocket_->serve({.num_pages = 800});
  expect_goldens(*server.engine, goldens_);
  const int64_t before = server.engine->metrics().prefix_cache_hits;
  expect_goldens(*server.engine, goldens_);
  EXPECT_GT(server.engine->metrics().prefix_cache_hits, before + 500);

  server.engine->reset_prefix_cache();
  const int64_t after = server.engine->metrics().prefix_cache_hits;
  expect_goldens(*server.engine, {goldens_[0]});
  EXPECT_EQ(server.engine->metrics().prefix_cache_hits, after);
}

TEST_P(EngineTest, BeforeAndAfterAPreemption) {
  auto server = pocket_->serve({.max_model_len = 800, .max_num_seqs = 12, .num_pages = 60});
  expect_goldens(*server.engine, goldens_);
  EXPECT_GT(server.engine->metrics().num_preemptions, 0);
}

TEST_P(EngineTest, SampledTokensDependOnTheSeedAlone) {
  const auto sample = [&](Engine& engine, uint64_t seed) {
    Request request = greedy(goldens_[6]);
    request.sampling.temperature = 4.0f;
    request.sampling.top_p = 0.98f;
    request.sampling.seed = seed;
    request.sampling.max_tokens = 40;
    return engine.submit(request);
  };
  auto server = pocket_->serve({.num_pages = 800});
  const auto alone = drain(*server.engine, *sample(*server.engine, 5));
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (uint64_t seed = 0; seed < 10; ++seed) streams.push_back(sample(*server.engine, seed));
  std::set<std::vector<int32_t>> distinct;
  for (size_t seed = 0; seed < streams.size(); ++seed) {
    const auto ids = drain(*server.engine, *streams[seed]);
    if (seed == 5 && pocket_->backend->wide_rows() == INT64_MAX) {  // or bits depend on the batch
      EXPECT_EQ(ids, alone);
    }
    distinct.insert(ids);
  }
  EXPECT_GT(distinct.size(), 5u);
  // The same rows again, on any machine.
  auto forgetful = pocket_->serve({.num_pages = 800, .prefix_caching = false});
  const auto once = drain(*forgetful.engine, *sample(*forgetful.engine, 5));
  EXPECT_EQ(drain(*forgetful.engine, *sample(*forgetful.engine, 5)), once);
}

TEST_P(EngineTest, LimitsEndARequest) {
  auto server = pocket_->serve({.max_model_len = 64, .num_pages = 100});
  Request request = greedy(goldens_[0]);
  request.sampling.max_tokens = 5;
  EXPECT_EQ(drain(*server.engine, *server.engine->submit(request)).size(), 5u);
  request.sampling.max_tokens = 1000;
  request.sampling.ignore_eos = true;
  EXPECT_EQ(drain(*server.engine, *server.engine->submit(request)).size(),
            64 - goldens_[0].input_ids.size());
  request.sampling.ignore_eos = false;
  request.sampling.stop_token_ids = {goldens_[0].greedy_ids[3]};
  const auto stopped = drain(*server.engine, *server.engine->submit(request));
  EXPECT_EQ(stopped.back(), goldens_[0].greedy_ids[3]);
  request.sampling.min_tokens = 45;
  EXPECT_GE(drain(*server.engine, *server.engine->submit(request)).size(), 45u);
}

// What a client sees of a request.
struct Seen {
  std::vector<int32_t> ids{};  // without the stop id
  std::vector<float> logprobs{};
  std::vector<std::pair<int32_t, float>> prompt_logprobs{};
  Finish finish{};

  // False when the request is finished.
  bool take(StreamUpdate update) {
    for (const Token& token : update.tokens) {
      ids.push_back(token.id);
      if (token.logprobs) logprobs.push_back(token.logprobs->logprob);
    }
    for (const TokenLogprobs& at : update.prompt_logprobs) {
      prompt_logprobs.emplace_back(at.top.at(0).first, at.logprob);
    }
    if (update.finish) finish = *update.finish;
    return !update.finish;
  }
  size_t num_generated() const { return ids.size() + finish.stop_token.has_value(); }
};

// Requests of all kinds, what ends them among these.
Request mixed_request(const Golden& golden, int i) {
  Request request{.prompt = golden.input_ids, .use_prefix_cache = i % 5 != 0};
  SamplingParams& p = request.sampling;
  p = {.temperature = i % 3 == 0 ? 0.0f : 1.5f, .seed = uint64_t(i), .max_tokens = 3 + 9 * (i % 6)};
  if (i % 4 == 1) p.repetition_penalty = 1.2f;
  if (i % 5 == 2) p.presence_penalty = 0.7f, p.frequency_penalty = 0.4f;
  if (i % 6 == 3) p.logprobs = 3;
  if (i % 7 == 4) p.prompt_logprobs = 1;
  if (i % 2 == 1) p.stop_token_ids = {golden.greedy_ids[2], golden.greedy_ids.back()};
  if (i % 8 == 5) p.min_tokens = 4;
  p.ignore_eos = i % 9 == 8;
  return request;
}

TEST_P(EngineTest, AMixOfRequestsIsAnsweredAsEachAlone) {
  if (pocket_->backend->wide_rows() != INT64_MAX) GTEST_SKIP() << "bits depend on the batch here";
  auto one_by_one = pocket_->serve({.num_pages = 800});
  auto together = pocket_->serve(
      {.max_model_len = 250, .max_num_seqs = 8, .max_num_batched_tokens = 40, .num_pages = 16});
  Engine& engine = *together.engine;
  std::vector<Seen> alone;
  std::vector<std::shared_ptr<TokenStream>> streams;
  std::set<FinishReason> reasons;
  size_t generated = 0;
  for (int i = 0; i < 40; ++i) {
    const Golden& golden = goldens_[size_t(i) % 4];
    ASSERT_LT(golden.input_ids.size(), 200u);
    const auto stream = one_by_one.engine->submit(mixed_request(golden, i));
    alone.emplace_back();
    while (alone.back().take(stream->poll())) one_by_one.engine->step();
    generated += alone.back().num_generated();
    reasons.insert(alone.back().finish.reason);
    streams.push_back(engine.submit(mixed_request(golden, i)));
    if (i % 3 == 2) engine.step();
  }
  EXPECT_EQ(reasons, (std::set{FinishReason::kStop, FinishReason::kLength}));
  while (engine.step()) {
  }
  for (size_t i = 0; i < streams.size(); ++i) {
    Seen seen;
    EXPECT_FALSE(seen.take(streams[i]->poll()));
    EXPECT_EQ(seen.ids, alone[i].ids) << i;
    EXPECT_EQ(seen.logprobs, alone[i].logprobs) << i;
    EXPECT_EQ(seen.prompt_logprobs, alone[i].prompt_logprobs) << i;
    EXPECT_EQ(seen.finish.reason, alone[i].finish.reason) << i;
    EXPECT_EQ(seen.finish.stop_token.value_or(Token{-1}).id,
              alone[i].finish.stop_token.value_or(Token{-1}).id)
        << i;
  }
  EXPECT_GT(engine.metrics().num_preemptions, 0);
  EXPECT_EQ(engine.metrics().num_pages_used, 0);
  for (const Engine* e : {one_by_one.engine.get(), &engine}) {
    EXPECT_EQ(e->metrics().generation_tokens, int64_t(generated));
    EXPECT_EQ(e->metrics().request_generation_tokens.sum(), double(generated));
  }
}

TEST_P(EngineTest, PromptLogprobsEqualTransformersLosses) {
  auto server = pocket_->serve({.max_num_seqs = 4, .num_pages = 300});
  std::ifstream file(kPocketFolder + "/goldens.json");
  const auto nll = nlohmann::json::parse(file)[4]["nll"].get<std::vector<double>>();
  Request request = greedy(goldens_[4]);
  request.sampling.max_tokens = 1;
  request.sampling.prompt_logprobs = 2;
  const auto stream = server.engine->submit(request);
  while (server.engine->step()) {
  }
  const StreamUpdate update = stream->poll();
  ASSERT_EQ(update.prompt_logprobs.size(), nll.size());
  // BF16 cache against FP32: as far as logits are off, which is at most 0.16 of all of them.
  for (size_t i = 0; i < nll.size(); ++i) {
    EXPECT_NEAR(-update.prompt_logprobs[i].logprob, nll[i], 0.3) << i;
    EXPECT_EQ(update.prompt_logprobs[i].top.size(), 2u);
  }
}

TEST_P(EngineTest, CancelledRequestsReturnTheirPages) {
  auto server = pocket_->serve({.num_pages = 800});
  std::vector<std::shared_ptr<TokenStream>> streams;
  for (const Golden& golden : goldens_) streams.push_back(server.engine->submit(greedy(golden)));
  for (int i = 0; i < 3; ++i) server.engine->step();
  for (size_t i = 0; i < streams.size(); i += 2) streams[i]->cancel();
  for (size_t i = 1; i < streams.size(); i += 2) {
    EXPECT_EQ(drain(*server.engine, *streams[i]), goldens_[i].greedy_ids);
  }
  while (server.engine->step()) {
  }
  EXPECT_EQ(streams[0]->poll().finish->reason, FinishReason::kAbort);
  EXPECT_EQ(server.engine->metrics().num_pages_used, 0);
}

TEST_P(EngineTest, BadRequestsAreRefused) {
  auto server = pocket_->serve({.max_model_len = 100, .num_pages = 100});
  const auto status_of = [&](const Request& request) {
    try {
      server.engine->submit(request);
    } catch (const ApiError& e) {
      return e.status;
    }
    return 0;
  };
  EXPECT_EQ(status_of({.prompt = {}}), 400);
  EXPECT_EQ(status_of({.prompt = {6144}}), 400);
  EXPECT_EQ(status_of({.prompt = {-1}}), 400);
  EXPECT_EQ(status_of({.prompt = std::vector<int32_t>(100, 5)}), 400);
  EXPECT_EQ(status_of({.prompt = {5}, .sampling = {.logit_bias = {{9999, 1.0f}}}}), 400);
  EXPECT_EQ(status_of({.prompt = {5}}), 0);
}

TEST_P(EngineTest, ACacheThatIsTooSmallIsRefused) {
  EXPECT_THROW(pocket_->serve({.max_model_len = 4096, .num_pages = 255}), Error);
}

TEST_P(EngineTest, ManyThreadsSubmitAndCancel) {
  auto server = pocket_->serve({.max_num_seqs = 32, .num_pages = 600});
  Engine& engine = *server.engine;
  std::thread runner([&] { engine.run(); });
  std::vector<std::thread> clients;
  std::atomic<int> wrong{0};
  for (int c = 0; c < 8; ++c) {
    clients.emplace_back([&, c] {
      for (int round = 0; round < 3; ++round) {
        const Golden& golden = goldens_[size_t(c + round) % 4];
        const auto stream = engine.submit(greedy(golden));
        std::vector<int32_t> ids;
        for (std::optional<Finish> finish; !finish;) {
          const StreamUpdate update = stream->wait();
          for (const Token& token : update.tokens) ids.push_back(token.id);
          finish = update.finish;
          if (c % 3 == 0 && ids.size() > 5) stream->cancel();
          if (finish && finish->stop_token) ids.push_back(finish->stop_token->id);
        }
        if (c % 3 != 0 && ids != golden.greedy_ids) ++wrong;
      }
    });
  }
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(engine.metrics().num_pages_used, 0);
  engine.stop(/*drain=*/true);
  runner.join();
  EXPECT_FALSE(engine.healthy());
  EXPECT_THROW(engine.submit(greedy(goldens_[0])), ApiError);
}

TEST(Engine, ALostDeviceFailsRequestsInFlightAndLaterOnes) {
  auto lost = std::make_unique<LostBackend>();
  std::atomic<bool>& is_lost = lost->is_lost;
  PocketModel pocket(std::move(lost));
  auto server = pocket.serve({.max_num_seqs = 4, .num_pages = 600});
  Engine& engine = *server.engine;
  const auto submit = [&] {
    return engine.submit({.prompt = {1, 2, 3},
                          .sampling = {.temperature = 0, .max_tokens = 3000, .ignore_eos = true}});
  };
  const auto running = submit(), other = submit();
  std::thread runner([&] { engine.run(); });
  EXPECT_FALSE(running->wait().finish);
  is_lost = true;
  for (const auto& stream : {running, other}) {
    std::optional<Finish> finish;
    while (!finish) finish = stream->wait().finish;
    EXPECT_EQ(finish->reason, FinishReason::kError);
    EXPECT_NE(finish->error.find("fell off the bus"), std::string::npos) << finish->error;
  }
  runner.join();  // it ends by itself
  EXPECT_FALSE(engine.healthy());
  EXPECT_THROW(submit(), ApiError);
}

INSTANTIATE_TEST_SUITE_P(Backends, EngineTest, testing::Values("cpu", "late", "cuda"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace nibble
