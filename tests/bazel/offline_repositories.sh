#!/bin/sh
# Writes stand-ins for the repositories that Bazel 4.2 would fetch, into the folder $1.
# They hand every rule on to Bazel's own, which is all that py_library and py_test need.
set -eu

rules() {  # folder, then the names of the rules
    file=$1/defs.bzl
    shift
    for name in "$@"; do
        printf 'def %s(**kwargs):\n    native.%s(**kwargs)\n\n' "$name" "$name"
    done > "$file"
}

cd "$1"
for folder in rules_cc/cc rules_java/java rules_proto/proto rules_python/python \
    bazel_skylib/lib remote_coverage_tools; do
    mkdir -p "$folder"
    : > "${folder%%/*}/WORKSPACE"
    : > "${folder%%/*}/BUILD"
    : > "$folder/BUILD"
done
rules rules_cc/cc cc_binary cc_library cc_test cc_proto_library cc_toolchain \
    cc_toolchain_suite objc_library
rules rules_java/java java_binary java_import java_library java_runtime java_toolchain
rules rules_proto/proto proto_library proto_lang_toolchain
rules rules_python/python py_library py_test
printf '#!/bin/sh\n' > remote_coverage_tools/none.sh
chmod +x remote_coverage_tools/none.sh
cat > remote_coverage_tools/BUILD <<'END'
sh_binary(
    name = "coverage_report_generator",
    srcs = ["none.sh"],
    visibility = ["//visibility:public"],
)
END
