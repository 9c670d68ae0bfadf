// The bridge: Hugging Face tokenizers and minijinja behind a C ABI. Objects are immutable after
// they are made; any thread. No panic crosses it: it comes back as an error.
#pragma once

#include <stddef.h>
#include <stdint.h>

extern "C" {

struct NibbleTokenizer;
struct NibbleTemplate;

// Called on the caller's thread before the function returns; `data` lives only for the call.
using NibbleTextSink = void (*)(void* target, const char* text, size_t size_bytes);
using NibbleTokenSink = void (*)(void* target, uint32_t id, uint32_t flags, const char* bytes,
                                 size_t size_bytes);
using NibbleIdSink = void (*)(void* target, const uint32_t* ids, size_t num_ids);

enum NibbleErrorKind : int32_t {
  kNibbleOk = 0,
  kNibbleSyntax = 1,     // the template does not compile
  kNibbleRaised = 2,     // by raise_exception
  kNibbleUndefined = 3,  // an undefined value used
  kNibbleSecurity = 4,   // refused by the sandbox
  kNibbleRuntime = 5,    // anything else, a limit reached among it
};

struct NibbleError {
  int32_t kind;
  uint32_t line;        // of the template; 0: unknown
  NibbleTextSink sink;  // receives the message
  void* target;
};

enum NibbleTokenFlags : uint32_t { kNibbleAdded = 1, kNibbleSpecial = 2 };

// Everything below returns false, or null, after it filled `error`. Text is UTF-8.

NibbleTokenizer* nibble_tokenizer_load(const char* json, size_t size_bytes, NibbleError* error);
void nibble_tokenizer_free(NibbleTokenizer* tokenizer);
// Every token with the bytes it stands for, in no order.
bool nibble_tokenizer_tokens(const NibbleTokenizer* tokenizer, NibbleTokenSink sink, void* target,
                             NibbleError* error);
// `plain`: added tokens are not looked for.
bool nibble_tokenizer_encode(const NibbleTokenizer* tokenizer, const char* text, size_t size_bytes,
                             bool plain, NibbleIdSink sink, void* target, NibbleError* error);

NibbleTemplate* nibble_template_load(const char* source, size_t size_bytes, bool trim_blocks,
                                     bool lstrip_blocks, NibbleError* error);
void nibble_template_free(NibbleTemplate* chat_template);
// `context_json`: an object of variables. `wall_clock_s`: what strftime_now reads, local time as
// seconds since 1970 began.
bool nibble_template_render(const NibbleTemplate* chat_template, const char* context_json,
                            size_t size_bytes, int64_t wall_clock_s, NibbleTextSink sink,
                            void* target, NibbleError* error);

}  // extern "C"
