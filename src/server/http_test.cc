#include "server/http.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <string>
#include <thread>

#include "base/error.h"
#include "server/errors.h"

namespace nibble {
namespace {

using namespace std::chrono_literals;

std::atomic<int> live_answers{0};

// A stream of "tick" until released, or one response.
class Ticking : public LiveAnswer {
 public:
  Ticking(bool streams, const std::atomic<bool>& released, size_t bytes)
      : LiveAnswer(streams), released_(released), bytes_(bytes) {
    ++live_answers;
    response.content_type = streams ? "text/event-stream" : "text/plain";
  }
  ~Ticking() override { --live_answers; }
  bool advance() override {
    if (streams) response.body += std::string(bytes_, 't');
    if (!released_) return false;
    response.body += "end";
    return true;
  }

 private:
  const std::atomic<bool>& released_;
  size_t bytes_;
};

class TestHandler : public HttpHandler {
 public:
  std::optional<HttpResponse> admit(const HttpRequest& head) override {
    if (head.path == "/refused") return error_response(401, "no");
    return std::nullopt;
  }
  bool is_quick(const HttpRequest& request) override { return request.path == "/quick"; }
  Answer handle(const HttpRequest& request) override {
    if (request.path == "/stream") return std::make_unique<Ticking>(true, released, 4);
    if (request.path == "/flood") return std::make_unique<Ticking>(true, released, 1 << 20);
    if (request.path == "/whole") return std::make_unique<Ticking>(false, released, 0);
    return HttpResponse{.content_type = "text/plain",
                        .body = request.method + " " + request.path + "?" + request.query + " " +
                                std::to_string(request.body.size())};
  }
  void decorate(const HttpRequest&, HttpResponse& response) override {
    response.headers.emplace_back("X-Test", "yes");
    ++answered;
  }
  std::atomic<bool> released{false};
  std::atomic<int> answered{0};
};

class Client {
 public:
  explicit Client(uint16_t port) : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(connect(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
  }
  ~Client() { close(); }
  void close() {
    if (socket_ >= 0) ::close(socket_);
    socket_ = -1;
  }
  void shut() { ::shutdown(socket_, SHUT_WR); }
  // False when the server does not take it all within a second a piece.
  bool send(std::string_view bytes) {
    while (!bytes.empty()) {
      pollfd ready{.fd = socket_, .events = POLLOUT, .revents = 0};
      if (::poll(&ready, 1, 1000) != 1) return false;
      const ssize_t count =
          ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (count <= 0) return false;
      bytes.remove_prefix(size_t(count));
    }
    return true;
  }
  // Until `text` has come, or the end, or the time is over.
  std::string read_until(std::string_view text, std::chrono::milliseconds time = 5000ms) {
    const auto deadline = std::chrono::steady_clock::now() + time;
    while (text.empty() || received_.find(text) == std::string::npos) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          deadline - std::chrono::steady_clock::now());
      pollfd ready{.fd = socket_, .events = POLLIN, .revents = 0};
      if (left <= 0ms || ::poll(&ready, 1, int(left.count())) != 1) break;
      char bytes[65536];
      const ssize_t count = ::recv(socket_, bytes, sizeof(bytes), 0);
      if (count <= 0) {
        ended_ = true;
        break;
      }
      received_.append(bytes, size_t(count));
    }
    return std::exchange(received_, {});
  }
  std::string read_all() { return read_until(""); }
  bool ended() const { return ended_; }

 private:
  int socket_;
  std::string received_;
  bool ended_ = false;
};

class HttpTest : public testing::Test {
 protected:
  void SetUp() override {
    HttpOptions options{.port = 0};
    options.max_body_bytes = 1 << 20;
    options.header_timeout = 300ms;
    options.keep_alive_timeout = 300ms;
    options.body_timeout = 300ms;
    options.write_timeout = 1000ms;
    options.stream_comment_after = 200ms;
    server_ = std::make_unique<HttpServer>(options, handler_);
    thread_ = std::thread([this] { server_->run(); });
  }
  void TearDown() override {
    handler_.released = true;
    server_->stop();
    server_->wake();
    thread_.join();
    server_.reset();
    EXPECT_EQ(live_answers, 0);
  }
  uint16_t port() const { return server_->port(); }
  std::string roundtrip(std::string_view bytes) {
    Client client(port());
    client.send(bytes);
    return client.read_all();
  }
  template <typename Condition>
  static bool soon(Condition condition) {
    for (int i = 0; i < 200 && !condition(); ++i) std::this_thread::sleep_for(10ms);
    return condition();
  }

  TestHandler handler_;
  std::unique_ptr<HttpServer> server_;
  std::thread thread_;
};

TEST_F(HttpTest, AnswersAndKeepsTheConnection) {
  Client client(port());
  client.send("GET /quick?a=b HTTP/1.1\r\nHost: x\r\n\r\n");
  const std::string first = client.read_until("GET /quick?a=b 0");
  EXPECT_TRUE(first.starts_with("HTTP/1.1 200 OK\r\n")) << first;
  EXPECT_NE(first.find("X-Test: yes\r\n"), std::string::npos);
  client.send("POST /%65cho HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello");
  EXPECT_NE(client.read_until("POST /echo? 5").find("POST /echo? 5"), std::string::npos);
  client.read_all();
  EXPECT_TRUE(client.ended());  // after the idle time
}

TEST_F(HttpTest, AnswersPipelinedRequestsInOrder) {
  Client client(port());
  client.send(
      "POST /a HTTP/1.1\r\nContent-Length: 1\r\n\r\nxGET /quick HTTP/1.1\r\n\r\n"
      "GET /b HTTP/1.1\r\nConnection: close\r\n\r\n");
  const std::string all = client.read_all();
  const size_t a = all.find("POST /a? 1"), quick = all.find("GET /quick? 0");
  const size_t b = all.find("GET /b? 0");
  EXPECT_LT(a, quick);
  EXPECT_LT(quick, b);
  EXPECT_NE(b, std::string::npos) << all;
}

TEST_F(HttpTest, ReadsChunkedBodiesAndSaysContinue) {
  Client client(port());
  client.send("POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_EQ(client.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  client.send("3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  EXPECT_NE(client.read_until("POST /c? 5").find("POST /c? 5"), std::string::npos);
}

TEST_F(HttpTest, ReadsChunkedBodiesByteByByte) {
  for (const std::string body : {"0\r\n\r\n", "1\r\nx\r\n0\r\n\r\n"}) {
    Client client(port());
    client.send("POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (const char byte : body) {
      client.send({&byte, 1});
      std::this_thread::sleep_for(2ms);
    }
    EXPECT_NE(client.read_until("POST /c? ").find("200 OK"), std::string::npos);
  }
}

TEST_F(HttpTest, AnswersHeadWithoutBody) {
  const std::string all = roundtrip("HEAD /quick HTTP/1.1\r\nConnection: close\r\n\r\n");
  EXPECT_NE(all.find("Content-Length: 14\r\n"), std::string::npos) << all;
  EXPECT_TRUE(all.ends_with("\r\n\r\n"));
}

TEST_F(HttpTest, RefusesWhatIsNotARequest) {
  const auto status = [this](std::string_view bytes) { return roundtrip(bytes).substr(0, 12); };
  EXPECT_EQ(status("nonsense\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(status("GET / HTTP/2.0\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(status("GET /%zz HTTP/1.1\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(status("POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), "HTTP/1.1 400");
  EXPECT_EQ(status("POST / HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef"),
            "HTTP/1.1 400");
  EXPECT_EQ(status("POST / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
            "HTTP/1.1 400");
  EXPECT_EQ(status("POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n"), "HTTP/1.1 501");
  EXPECT_EQ(status("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello"),
            "HTTP/1.1 400");
  EXPECT_EQ(status("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
            "HTTP/1.1 400");
}

TEST_F(HttpTest, LimitsHeads) {
  EXPECT_TRUE(roundtrip("GET /" + std::string(70'000, 'a') + " HTTP/1.1\r\n\r\n")
                  .starts_with("HTTP/1.1 431"));
  std::string many = "GET / HTTP/1.1\r\n";
  for (int i = 0; i < 300; ++i) many += "A: b\r\n";
  EXPECT_TRUE(roundtrip(many + "\r\n").starts_with("HTTP/1.1 431"));
}

TEST_F(HttpTest, LimitsBodiesAndLetsTheClientReadTheAnswer) {
  Client client(port());
  EXPECT_TRUE(client.send("POST / HTTP/1.1\r\nContent-Length: 100000000\r\n\r\n"));
  EXPECT_TRUE(client.send(std::string(100'000'000, 'x')));
  EXPECT_TRUE(client.read_all().starts_with("HTTP/1.1 413"));

  Client chunked(port());
  EXPECT_TRUE(chunked.send("POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n200000\r\n"));
  EXPECT_TRUE(chunked.send(std::string(0x200000, 'x')));
  EXPECT_TRUE(chunked.read_all().starts_with("HTTP/1.1 413"));
}

TEST_F(HttpTest, RefusesBeforeTheBody) {
  const std::string all = roundtrip("POST /refused HTTP/1.1\r\nContent-Length: 1000\r\n\r\n");
  EXPECT_TRUE(all.starts_with("HTTP/1.1 401")) << all;
  EXPECT_NE(all.find("Connection: close"), std::string::npos);
}

TEST_F(HttpTest, CutsOffSlowSenders) {
  EXPECT_TRUE(roundtrip("GET /quick HT").starts_with("HTTP/1.1 408"));
  EXPECT_TRUE(
      roundtrip("POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc").starts_with("HTTP/1.1 408"));
  Client drip(port());
  for (int i = 0; i < 10; ++i) {
    drip.send("GET / HTTP/1.1\r\nA: b"[i] == 0 ? "x" : std::string(1, "GET / HTTP"[i]));
    std::this_thread::sleep_for(50ms);
  }
  EXPECT_TRUE(drip.read_all().starts_with("HTTP/1.1 408"));
}

TEST_F(HttpTest, AnswersHalfClosedClients) {
  Client cut(port());
  cut.send("POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\nabc");
  cut.shut();
  EXPECT_TRUE(cut.read_all().starts_with("HTTP/1.1 400"));

  Client whole(port());
  whole.send("POST /whole HTTP/1.1\r\n\r\n");
  whole.shut();
  EXPECT_EQ(whole.read_until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
  handler_.released = true;
  server_->wake();
  EXPECT_NE(whole.read_all().find("end"), std::string::npos);
}

TEST_F(HttpTest, StreamsChunksAndComments) {
  Client client(port());
  client.send("POST /stream HTTP/1.1\r\n\r\n");
  EXPECT_NE(client.read_until("4\r\ntttt\r\n").find("Transfer-Encoding: chunked"),
            std::string::npos);
  server_->wake();
  client.read_until("4\r\ntttt\r\n");
  handler_.released = true;
  server_->wake();
  EXPECT_EQ(client.read_until("0\r\n\r\n"), "7\r\nttttend\r\n0\r\n\r\n");
  client.send("GET /quick HTTP/1.1\r\n\r\n");
  client.read_until("GET /quick");
}

TEST_F(HttpTest, StreamsToOldClientsUntilTheEnd) {
  handler_.released = true;
  const std::string all = roundtrip("POST /stream HTTP/1.0\r\n\r\n");
  EXPECT_TRUE(all.ends_with("\r\n\r\nttttend")) << all;
  EXPECT_EQ(all.find("chunked"), std::string::npos);
}

TEST_F(HttpTest, CancelsWhenTheClientLeaves) {
  for (const char* path : {"/stream", "/whole"}) {
    Client client(port());
    client.send(std::string("POST ") + path + " HTTP/1.1\r\n\r\n");
    EXPECT_TRUE(soon([] { return live_answers == 1; }));
    client.close();
    EXPECT_TRUE(soon([] { return live_answers == 0; })) << path;
  }
}

TEST_F(HttpTest, CutsOffSlowReaders) {
  Client client(port());
  client.send("POST /flood HTTP/1.1\r\n\r\n");
  EXPECT_TRUE(soon([] { return live_answers == 1; }));
  for (int i = 0; i < 100 && live_answers == 1; ++i) {
    server_->wake();
    std::this_thread::sleep_for(5ms);
  }
  EXPECT_EQ(live_answers, 0);
}

TEST_F(HttpTest, DrainsWhatIsBegun) {
  Client idle(port());
  Client client(port());
  client.send("POST /stream HTTP/1.1\r\n\r\n");
  client.read_until("tttt");
  server_->stop();
  idle.read_all();
  EXPECT_TRUE(idle.ended());
  handler_.released = true;
  server_->wake();
  EXPECT_NE(client.read_until("0\r\n\r\n").find("end"), std::string::npos);
  EXPECT_EQ(client.read_all(), "");
  EXPECT_TRUE(client.ended());
}

TEST_F(HttpTest, AbortsAtOnce) {
  Client client(port());
  client.send("POST /stream HTTP/1.1\r\n\r\n");
  client.read_until("tttt");
  server_->abort();
  client.read_all();
  EXPECT_TRUE(client.ended());
}

TEST_F(HttpTest, NamesTheBusyPort) {
  try {
    HttpServer second({.port = port()}, handler_);
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(std::to_string(port())), std::string::npos);
    EXPECT_NE(std::string(error.what()).find("--port"), std::string::npos);
  }
}

}  // namespace
}  // namespace nibble
