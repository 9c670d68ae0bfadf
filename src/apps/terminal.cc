#include "apps/terminal.h"

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdio>

namespace nibble {

bool is_terminal(int fd) {
  return ::isatty(fd) == 1;
}

std::string dimmed(const std::string& text) {
  return is_terminal(STDOUT_FILENO) ? "\033[2m" + text + "\033[0m" : text;
}

std::string bold(const std::string& text) {
  return is_terminal(STDOUT_FILENO) ? "\033[1m" + text + "\033[0m" : text;
}

ProgressLine::ProgressLine() : enabled_(is_terminal(STDERR_FILENO)) {}

ProgressLine::~ProgressLine() {
  if (shown_) std::fputs("\r\033[K", stderr);
}

void ProgressLine::show(const std::string& text) {
  if (!enabled_) return;
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
  shown_ = true;
}

std::string ProgressLine::bar(double share) {
  constexpr int kWidth = 30;
  const int filled = int(share * kWidth);
  char percent[16];
  std::snprintf(percent, sizeof(percent), "%3d %%", int(share * 100));
  return "[" + std::string(size_t(filled), '#') + std::string(size_t(kWidth - filled), '.') + "] " +
         percent;
}

std::string table(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()), 0);
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], row[c].size());
  }
  std::string out;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string padding(widths[c] - row[c].size(), ' ');
      const bool number = !row[c].empty() && std::isdigit(static_cast<unsigned char>(row[c][0]));
      line += (c > 0 ? "  " : "") + (number ? padding + row[c] : row[c] + padding);
    }
    out += line.substr(0, line.find_last_not_of(' ') + 1) + "\n";
  }
  return out;
}

std::string format_number(double value, int decimals) {
  char text[64];
  std::snprintf(text, sizeof(text), "%.*f", decimals, value);
  return text;
}

}  // namespace nibble
