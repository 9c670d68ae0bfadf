// What a terminal can show: colours, a line that is rewritten, tables.
#pragma once

#include <string>
#include <vector>

namespace nibble {

bool is_terminal(int fd);

// `text` dimmed or bold on a terminal (stdout), plain elsewhere.
std::string dimmed(const std::string& text);
std::string bold(const std::string& text);

// One line on stderr that is rewritten in place; nothing where stderr is no terminal.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();  // clears the line
  void show(const std::string& text);
  // "[#####.....]  50 %"
  static std::string bar(double share);

 private:
  bool enabled_;
  bool shown_ = false;
};

// Columns padded to their widest cell, numbers (cells that start with a digit) to the right.
std::string table(const std::vector<std::vector<std::string>>& rows);

// "%.1f" and the like, without a buffer.
std::string format_number(double value, int decimals);

}  // namespace nibble
