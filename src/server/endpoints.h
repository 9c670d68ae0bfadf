// The endpoints, one a file. What they answer: docs of OpenAI's, vLLM's and llama-server's APIs.
#pragma once

#include "server/service.h"

namespace nibble {

Answer chat_completions(const Service& service, const HttpRequest& request);    // chat.cc
Answer completions(const Service& service, const HttpRequest& request);         // completions.cc
Answer render_chat_prompt(const Service& service, const HttpRequest& request);  // render.cc
Answer render_completion_prompt(const Service& service, const HttpRequest& request);  // render.cc
Answer list_models(const Service& service, const HttpRequest& request);               // models.cc
Answer show_model(const Service& service, const HttpRequest& request);                // models.cc
Answer tokenize(const Service& service, const HttpRequest& request);                  // tokenize.cc
Answer detokenize(const Service& service, const HttpRequest& request);                // tokenize.cc
Answer health(const Service& service, const HttpRequest& request);                    // health.cc
Answer version(const Service& service, const HttpRequest& request);                   // health.cc
Answer metrics(const Service& service, const HttpRequest& request);                   // metrics.cc

}  // namespace nibble
