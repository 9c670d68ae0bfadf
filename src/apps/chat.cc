// nibble chat: a conversation in the terminal. From a pipe: one message, one answer.
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "apps/session.h"
#include "apps/subcommands.h"
#include "apps/terminal.h"
#include "base/error.h"
#include "base/log.h"
#include "checkpoint/json_file.h"
#include "text/detokenizer.h"
#include "text/output_parser.h"
#include "text/prompt.h"
#include "text/tag_ids.h"

namespace nibble {
namespace {

std::atomic<bool> interrupted{false};
int interrupts[2] = {-1, -1};  // a pipe, so that none is lost between the prompt and the wait

void on_interrupt(int) {
  const int error = errno;
  interrupted = true;
  [[maybe_unused]] const ssize_t written = ::write(interrupts[1], "", 1);  // full: it wakes, too
  errno = error;
}

// During an answer Ctrl-C stops it; at the prompt it leaves.
void watch_interrupts() {
  if (::pipe2(interrupts, O_CLOEXEC | O_NONBLOCK) != 0) throw Error("no pipe: out of files");
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  ::sigaction(SIGINT, &action, nullptr);
}

void forget_interrupts() {
  char bytes[16];
  while (::read(interrupts[0], bytes, sizeof(bytes)) > 0) {
  }
}

// Waits for a line in a terminal; false when Ctrl-C came first.
bool wait_for_line() {
  pollfd files[2] = {{STDIN_FILENO, POLLIN, 0}, {interrupts[0], POLLIN, 0}};
  while (::poll(files, 2, -1) < 0 && errno == EINTR) {
  }
  return files[1].revents == 0;
}

// Sampling as generation_config.json suggests, unless the user says otherwise.
SamplingParams sampling_of(const ChatOptions& options, const std::filesystem::path& folder) {
  SamplingParams params;
  const auto path = folder / "generation_config.json";
  if (std::filesystem::exists(path)) {
    const JsonFile file = JsonFile::load(path);
    params.temperature = float(file.number("temperature", 0, 100).value_or(1.0));
    params.top_p = float(file.number("top_p", 0, 1).value_or(1.0));
    params.top_k = int(file.integer("top_k", -1, 1 << 24).value_or(0));
    if (file.boolean("do_sample") == false) params.temperature = 0;
  }
  if (options.temperature) params.temperature = *options.temperature;
  if (options.top_p) params.top_p = *options.top_p;
  return params;
}

class Conversation {
 public:
  Conversation(Session& session, const ChatOptions& options)
      : session_(session),
        options_(options),
        sampling_(sampling_of(options, session.folder)),
        tags_(*session.tokenizer) {
    if (session.chat_template == nullptr) {
      throw Error(session.folder.string() +
                  ": the checkpoint has no chat template (chat_template.jinja)");
    }
    clear();
  }

  void clear() {
    messages_ = nlohmann::ordered_json::array();
    if (!options_.system.empty()) {
      messages_.push_back({{"role", "system"}, {"content", options_.system}});
    }
  }

  // Answers `text` on stdout and remembers both; an interrupted answer counts as far as it got.
  // Throws ApiError, and remembers nothing, for what cannot be asked.
  void say(const std::string& text) {
    messages_.push_back({{"role", "user"}, {"content", text}});
    RenderRequest request{.messages = messages_};
    if (options_.no_thinking) request.kwargs = {{"enable_thinking", false}};
    try {
      const Prompt prompt =
          render_prompt(*session_.chat_template, *session_.tokenizer, request, false);
      messages_.push_back({{"role", "assistant"}, {"content", answer(prompt)}});
    } catch (const ApiError&) {
      messages_.erase(messages_.end() - 1);
      throw;
    }
  }

 private:
  std::string answer(const Prompt& prompt) {
    SamplingParams sampling = sampling_;
    const int room = session_.engine().options().max_model_len - int(prompt.ids.size());
    sampling.max_tokens = options_.max_tokens > 0 ? std::min(options_.max_tokens, room) : room;
    const auto start = std::chrono::steady_clock::now();
    const auto stream = session_.engine().submit({.prompt = prompt.ids, .sampling = sampling});
    Detokenizer detokenizer(*session_.tokenizer, /*skip_special=*/true);
    OutputParser parser(
        {.tool_calls = false, .starts_in_reasoning = starts_in_reasoning(prompt.text)});
    std::string content;
    int tokens = 0;
    interrupted = false;
    for (std::optional<Finish> finish; !finish;) {
      const StreamUpdate update = stream->wait(std::chrono::milliseconds(50));
      if (interrupted.exchange(false)) stream->cancel();
      for (const Token& token : update.tokens) {
        if (const Tag tag = tags_.of(token.id); tag == Tag::kNone) {
          show(parser.push(detokenizer.push(token.id)), content);
        } else {
          show(parser.push(detokenizer.flush()), content);
          show(parser.push(kTagNames[size_t(tag)], tag), content);
        }
        ++tokens;
      }
      std::fflush(stdout);
      finish = update.finish;
      if (finish && finish->reason == FinishReason::kError) {
        throw Error("the engine failed: " + finish->error);
      }
    }
    show(parser.push(detokenizer.flush()), content);
    show(parser.finish(true), content);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    end_answer(tokens, elapsed.count());
    return content;
  }

  void show(const std::vector<ParserEvent>& events, std::string& content) {
    for (const ParserEvent& event : events) {
      const bool thinking = event.kind == ParserEvent::Kind::kReasoning;
      if (!thinking) content += event.text;
      if (thinking && options_.hide_thinking) continue;
      if (thought_shown_ && !thinking) std::fputs("\n\n", stdout);
      thought_shown_ = thinking;
      std::fputs(thinking ? dimmed(event.text).c_str() : event.text.c_str(), stdout);
    }
  }

  void end_answer(int tokens, double seconds) {
    thought_shown_ = false;
    std::fputs("\n", stdout);
    if (!is_terminal(STDOUT_FILENO)) return;
    std::printf("%s\n\n", dimmed("(" + std::to_string(tokens) + " tokens, " +
                                 format_number(tokens / seconds, 0) + " a second)")
                              .c_str());
  }

  Session& session_;
  const ChatOptions& options_;
  const SamplingParams sampling_;
  const TagIds tags_;
  nlohmann::ordered_json messages_;
  bool thought_shown_ = false;
};

// A line, with those that a trailing backslash joins to it; nothing at the end of the input and at
// Ctrl-C.
std::optional<std::string> read_message() {
  std::string message, line;
  forget_interrupts();
  std::fputs(bold("> ").c_str(), stdout);
  std::fflush(stdout);
  while (wait_for_line() && std::getline(std::cin, line)) {
    if (line.empty() || line.back() != '\\') return message + line;
    line.back() = '\n';
    message += line;
    std::fputs("  ", stdout);
    std::fflush(stdout);
  }
  return std::nullopt;
}

void talk(Conversation& conversation) {
  std::printf(
      "Ask away. Ctrl-C stops an answer, /clear starts again, /exit (or Ctrl-D) leaves.\n\n");
  while (const auto message = read_message()) {
    if (*message == "/exit") return;
    if (message->empty()) continue;
    if (*message == "/clear") {
      conversation.clear();
      continue;
    }
    try {
      conversation.say(*message);
    } catch (const ApiError& e) {
      std::fprintf(stderr, "%s (/clear starts again)\n", escape_control(e.what()).c_str());
    }
  }
  std::fputs("\n", stdout);
}

}  // namespace

int chat(const ChatOptions& options) {
  ModelOptions model = options.model;
  model.max_num_seqs = 1;
  set_log_level(LogLevel::kWarning);
  Session session(model);
  Conversation conversation(session, options);
  session.runtime->start();
  if (!is_terminal(STDIN_FILENO)) {
    const std::string text(std::istreambuf_iterator<char>(std::cin), {});
    if (text.find_first_not_of(" \t\r\n") == std::string::npos) {
      throw Error("standard input is empty: pipe a message in, or start nibble chat in a terminal");
    }
    conversation.say(text.substr(0, text.find_last_not_of("\r\n") + 1));
    return 0;
  }
  watch_interrupts();
  talk(conversation);
  return 0;
}

}  // namespace nibble
