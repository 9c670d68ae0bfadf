#include "engine/token_stream.h"

#include <gtest/gtest.h>

#include <thread>

namespace nibble {
namespace {

TEST(TokenStream, PollTakesWhatArrived) {
  TokenStream stream;
  EXPECT_TRUE(stream.poll().empty());
  stream.push({.id = 1});
  stream.push({.id = 2});
  const StreamUpdate update = stream.poll();
  ASSERT_EQ(update.tokens.size(), 2u);
  EXPECT_EQ(update.tokens[1].id, 2);
  EXPECT_FALSE(update.finish);
  EXPECT_TRUE(stream.poll().empty());
}

TEST(TokenStream, WaitReturnsWithTheNextArrival) {
  TokenStream stream;
  std::thread producer([&] {
    for (int i = 0; i < 100; ++i) stream.push({.id = i});
    stream.finish({.reason = FinishReason::kLength});
  });
  int tokens = 0;
  for (bool done = false; !done;) {
    const StreamUpdate update = stream.wait();
    for (const Token& token : update.tokens) EXPECT_EQ(token.id, tokens++);
    done = update.finish.has_value();
  }
  EXPECT_EQ(tokens, 100);
  producer.join();
}

TEST(TokenStream, WaitGivesUpInTheEnd) {
  TokenStream stream;
  EXPECT_TRUE(stream.wait(std::chrono::milliseconds(1)).empty());
}

}  // namespace
}  // namespace nibble
