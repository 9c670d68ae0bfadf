// The flags of quantize and prune.
#include "apps/flags.h"

namespace nibble {
namespace {

void add_calibration_flags(CLI::App& app, CalibrationFlags& f) {
  auto* group = app.add_option_group("calibration");
  group
      ->add_option("--calibration", f.file,
                   "conversations, one JSON object with messages a line (default: the file beside "
                   "the pocket model)")
      ->type_name("FILE.jsonl");
  group->add_option("--samples", f.samples, "conversations to use")
      ->capture_default_str()
      ->check(CLI::Range(1, 1 << 20))
      ->type_name("N");
  group->add_option("--max-length", f.max_length, "tokens of a conversation; the rest is cut off")
      ->capture_default_str()
      ->check(CLI::Range(2, 1 << 20))
      ->type_name("N");
  group->add_flag("--strict", f.strict,
                  "refuse lines that cannot be read instead of leaving them out");
  group->add_option("--device", f.device, "cpu; reference: plain loops, for tests")
      ->capture_default_str()
      ->check(CLI::IsMember({"cpu", "reference"}))
      ->type_name("NAME");
  group->add_option("--threads", f.threads, "CPU threads (default: physical cores)")
      ->check(CLI::Range(1, 1024))
      ->type_name("N");
}

void add_run_flags(CLI::App& app, std::filesystem::path& spill, bool& resume, bool& dry_run) {
  auto* group = app.add_option_group("run");
  group->add_option("--spill", spill, "folder for activations (default: memory)")->type_name("DIR");
  group->add_flag("--resume", resume, "go on with a run that was stopped");
  group->add_flag("--dry-run", dry_run,
                  "only say what it would take of memory and disk on the CPU");
}

}  // namespace

void add_quantize_flags(CLI::App& app, QuantizeFlags& f) {
  QuantizeOptions& o = f.quantize;
  app.add_option("source", o.source, "folder of the BF16 checkpoint")->required()->type_name("SRC");
  app.add_option("target", o.target, "folder to make")->required()->type_name("DST");
  app.add_option("--recipe", o.recipe, "best, awq-lite or rtn (needs no calibration)")
      ->capture_default_str()
      ->type_name("NAME");
  add_calibration_flags(app, f.calibration);
  auto* group = app.add_option_group("what is stored how");
  group
      ->add_option("--exclude", o.exclude,
                   "linears that stay as they are, such as '*.self_attn.*'; may be repeated")
      ->type_name("PATTERN");
  group->add_option("--fp8", o.fp8, "linears in FP8 instead; may be repeated")
      ->type_name("PATTERN");
  group
      ->add_option("--budget", f.budget,
                   "keep linears in FP8, q_a and kv_a first, then by their loss a byte, until the "
                   "result is so much larger, such as +1%")
      ->type_name("+N%");
  group->add_option("--lm-head", o.lm_head, "bf16, fp8 or nvfp4")
      ->capture_default_str()
      ->type_name("NAME");
  group->add_option("--embed", o.embed, "bf16 or nvfp4")->capture_default_str()->type_name("NAME");
  group->add_flag("--fold", o.fold,
                  "awq-lite: no pre_quant_scale, for engines that cannot read it");
  group->add_option("--format", o.format, "modelopt or compressed-tensors")
      ->capture_default_str()
      ->type_name("NAME");
  group
      ->add_option("--kv-cache-dtype", o.kv_cache_dtype,
                   "auto or fp8: what the checkpoint asks of engines")
      ->capture_default_str()
      ->type_name("NAME");
  add_run_flags(app, o.spill, o.resume, f.dry_run);
}

void add_prune_flags(CLI::App& app, PruneFlags& f) {
  PruneOptions& o = f.prune;
  app.add_option("source", o.source, "folder of the BF16 checkpoint")->required()->type_name("SRC");
  app.add_option("target", o.target, "folder to make")->required()->type_name("DST");
  app.add_option("--experts", o.experts, "routed experts that every layer keeps")
      ->required()
      ->check(CLI::Range(1, 4096))
      ->type_name("N");
  app.add_option(
         "--method", o.method,
         "reap: by routing weight and size of the expert's output; frequency: by its tokens")
      ->capture_default_str()
      ->type_name("NAME");
  add_calibration_flags(app, f.calibration);
  add_run_flags(app, o.spill, o.resume, f.dry_run);
}

}  // namespace nibble
